"""A student of a few channels, its inputs, the same student written in PyTorch, and the sizes of the thesis'."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import torch
from ml_collections import ConfigDict
from torch_parts import block, layer_norm, linear, randomised

from smke_jax.config_files import load_config
from smke_jax.models.student import build_student
from smke_jax.models.vision import sincos_positions
from smke_jax.training.build import build_part

WIDTH, HEADS, MLP, TARGET, VOCAB = 8, 2, 12, 6, 9
SIZE, PATCH, BATCH, LENGTH = 8, 4, 8, 5

rng = np.random.default_rng(0)
IMAGES = rng.normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
IDS = rng.integers(1, VOCAB, (BATCH, LENGTH)).astype(np.int32)
MASK = (np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (BATCH, 1))).astype(np.int32)


def config(shared=(), depth: int = 0, **fields) -> ConfigDict:
    """What `build_student` reads.  Towers of depth 0 are their stems alone: the quickest to compile."""
    tower = dict(width=WIDTH, depth=depth, num_heads=HEADS, mlp_dim=MLP, activation="gelu", norm_order="post")
    return ConfigDict(
        {
            "dtype": "float32",
            "token_types": True,
            "image": {"image_size": SIZE, "patch_size": PATCH, "norm_eps": 1e-6, **tower},
            "text": {"max_positions": LENGTH, "norm_eps": 1e-12, **tower},
            "shared": {"num_heads": HEADS, "mlp_dim": MLP, "norm_eps": 1e-6, "activation": "gelu", "layer_scale": 0.2}
            | {"init_std": 0.02, **dict(shared)},
            **fields,
        }
    )


def build(variant: ConfigDict):
    return build_student(variant, vocab_size=VOCAB, target_dim=TARGET)


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), IMAGES, IDS, MASK)["params"]


def start(variant: ConfigDict, seed: int = 1):
    """(The student, random parameters)."""
    model = build(variant)
    return model, randomised(shapes_of(model), seed)


def reference(p, modality: str, variant: ConfigDict):
    """{level: (B, L, ·)} of one modality in PyTorch, from parts that test_layers and test_towers check one by one."""
    place, row = variant.get("token_types_at", "after"), {"text": 0, "image": 1}[modality]
    added = p["type_embedding"][row] if "type_embedding" in p else 0.0
    if "type_scale" in p:
        added = added * p["type_scale"]["gamma"]
    before, after = (added, 0.0) if place == "before" else (0.0, added)
    e = p[f"{modality}_encoder"]
    if modality == "image":
        kernel, pixels = e["patch_embed"]["kernel"], torch.tensor(IMAGES.transpose(0, 3, 1, 2), dtype=torch.float64)
        x = torch.nn.functional.conv2d(pixels, kernel.permute(3, 2, 0, 1), e["patch_embed"]["bias"], stride=PATCH)
        x = x.flatten(2).transpose(1, 2) + torch.tensor(sincos_positions(SIZE // PATCH, WIDTH), dtype=torch.float64)
        x = torch.cat([e["cls_token"].expand(BATCH, 1, WIDTH), x], dim=1)
        x = layer_norm(e["norm"], x + before, 1e-6)
        mask, eps = None, 1e-6
    else:
        x = e["word_embedding"][torch.tensor(IDS, dtype=torch.long)] + e["position_embedding"] + e["type_embedding"][0]
        x = layer_norm(e["embedding_norm"], x, 1e-12) + before
        mask, eps = torch.tensor(MASK, dtype=torch.bool), 1e-12
    for i in range(variant[modality].depth):
        x = block(e[f"block_{i}"], x, heads=HEADS, order="post", eps=eps, mask=mask)[0]
    x = x + after
    shared = p["shared"]
    if variant.shared.get("type") == "mlp":
        u = linear(shared["fc1"], x[:, :1])
        x = linear(shared["fc2"], layer_norm(shared["norm"], torch.nn.functional.gelu(u), 1e-6))
    else:
        for one in [shared] if "norm1" in shared else [shared["block_0"], shared["block_1"]]:
            x, u, _ = block(one, x, heads=HEADS, order="pre", eps=1e-6, mask=mask)
    return {"fc1": u, "out": x, "head": linear(p["head"], layer_norm(p["head_norm"], x, 1e-6))}


def of_thesis(name: str):
    """(shapes of the student's parameters, {term: of its parameters}, {term: of its slots}) of a config."""
    file, _, kind = name.partition(":")
    c = load_config(f"{Path(__file__).resolve().parents[2] / 'configs' / file}.py:{kind}".removesuffix(":"))
    student = c.networks.student
    # What a term keeps depends on the levels it reads, not on the widths of other networks than the student.
    feature, found = jax.ShapeDtypeStruct((2, 768), np.float32), {}
    for term, own in c.terms.items():
        built = build_part("terms", term, own)
        found[term] = jax.eval_shape(lambda t=built: t.init(jax.random.key(0), dict.fromkeys(t.needs, feature)))
    params = {term: x[0] for term, x in found.items()}
    return _student(student.to_json()), params, {term: x[1] for term, x in found.items()}


@functools.cache  # many recipes train the same student
def _student(fields: str):
    network = build_part("networks", "student", ConfigDict(json.loads(fields)), vocab_size=30522)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), {}))
