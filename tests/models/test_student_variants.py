"""Students of the thesis' other recipes: their parameter counts, and what they compute against PyTorch."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from torch_parts import assert_near, block, gradients, layer_norm, linear, quick_jit, randomised, to_torch

from smke_jax.models.layers import REMAT
from smke_jax.models.student import build_student
from smke_jax.models.vision import sincos_positions
from smke_jax.training.recipe import build_recipe, init_params
from smke_jax.training.state import count_parameters

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEADS, MLP, TARGET, VOCAB = 8, 2, 12, 6, 9
SIZE, PATCH, BATCH, LENGTH = 8, 4, 3, 5

rng = np.random.default_rng(0)
IMAGES = rng.normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
IDS = rng.integers(1, VOCAB, (BATCH, LENGTH)).astype(np.int32)
MASK = (np.arange(LENGTH) < np.array([[2], [5], [4]])).astype(np.int32)

# ---- sizes

# Spec 25, with the logit scales of the terms.
COUNTS = {
    "shre_mlp": 114_983_656 + 3,
    "shre_ranking": 114_983_656,
    "shre_transformer": 117_343_722,
    "shre_transformer:late": 117_343_721,
    "s_smke_mse": 117_165_314,
    "no_itc": 117_165_312,
    "token_types": 117_167_618,
    "token_types:none": 117_165_314,
    "token_types:before": 117_165_314 + 2 * 768,
    "token_types:after": 117_165_314 + 2 * 768,
    "ctl": 117_167_618,
    "ctl_bank": 117_167_618,
    "teacher_ablation:beitv2_ft": 117_167_618 + (1000 - 768) * 769,
    "itc_only": 117_167_618,
    "finetune_retrieval": 117_167_617,
    "s_smke_12": 209_310_721,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_of_the_thesis(name):
    file, _, kind = name.partition(":")
    config = runpy.run_path(str(ROOT / "configs" / f"{file}.py"))["get_config"](kind)
    config.teacher.depth, size = 1, config.student.image.image_size  # of no effect on what is trained
    batch = {
        "image": jax.ShapeDtypeStruct((2, size, size, 3), jnp.uint8),
        **dict.fromkeys(("text", "text_mask"), jax.ShapeDtypeStruct((2, config.data.max_length), jnp.int32)),
        "id": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    recipe = build_recipe(config, vocab_size=30522)
    params, _ = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0), batch))
    assert count_parameters(params) == COUNTS[name]


# ---- what they compute


def config(shared=(), **fields) -> ConfigDict:
    tower = dict(width=WIDTH, depth=1, num_heads=HEADS, mlp_dim=MLP, activation="gelu", norm_order="post")
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


VARIANTS = {
    "one block, no vectors": config(token_types=False),
    "two blocks": config({"depth": 2}),
    "MLP": config({"type": "mlp"}, token_types=False),
    "MLP, vectors": config({"type": "mlp"}),
    "vectors before": config(token_types_at="before", token_type_scale=None),
    "scaled vectors before": config(token_types_at="before"),
    "vectors after": config(token_type_scale=None),
}


def reference(p, modality, variant):
    """{level: (B, ·)} in PyTorch."""
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
    x = block(e["block_0"], x, heads=HEADS, order="post", eps=eps, mask=mask)[0] + after
    shared = p["shared"]
    if variant.shared.get("type") == "mlp":
        u = linear(shared["fc1"], x[:, 0])
        v = linear(shared["fc2"], layer_norm(shared["norm"], torch.nn.functional.gelu(u), 1e-6))
    else:
        for one in [shared] if "norm1" in shared else [shared["block_0"], shared["block_1"]]:
            x, u, _ = block(one, x, heads=HEADS, order="pre", eps=1e-6, mask=mask)
        u, v = u[:, 0], x[:, 0]
    return {"fc1": u, "out": v, "head": linear(p["head"], layer_norm(p["head_norm"], v, 1e-6))}


def start(variant):
    model = build_student(variant, vocab_size=VOCAB, target_dim=TARGET)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES, IDS, MASK)["params"]
    return model, randomised(shapes, seed=1)


def run(model, params):
    """(representations, gradients of the sum of their cosines with fixed vectors)."""

    def forward(params):
        image, text = model.apply({"params": params}, IMAGES, IDS, MASK)
        out = {"image": image, "text": text}
        return sum(jnp.sum(weights(x.shape) * x) for x in jax.tree.leaves(out)), out

    with jax.default_matmul_precision("highest"):
        (_, out), grads = quick_jit(jax.value_and_grad(forward, has_aux=True))(params)
    return out, grads


def weights(shape):
    return np.random.default_rng(shape[-1]).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_equals_pytorch(name):
    variant = VARIANTS[name]
    model, params = start(variant)
    out, grads = run(model, params)
    p = to_torch(params)
    expected = {modality: reference(p, modality, variant) for modality in ("image", "text")}
    sum((x * torch.tensor(weights(x.shape))).sum() for levels in expected.values() for x in levels.values()).backward()
    for modality, levels in expected.items():
        for level, x in levels.items():
            assert_near(out[modality][level], x.detach().numpy())
    assert all(x.grad is not None for x in jax.tree.leaves(p)), "a parameter that PyTorch does not use"
    assert_near(grads, gradients(p))


@pytest.mark.parametrize("remat", REMAT)
@pytest.mark.parametrize("name", ["two blocks", "MLP"])
def test_remat_changes_no_number(name, remat):
    variant = VARIANTS[name].copy_and_resolve_references()
    plain = run(*start(variant))
    variant.remat = remat
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), run(*start(variant)), plain)


def test_a_single_shared_block_keeps_its_parameters_where_they_were():
    _, params = start(VARIANTS["one block, no vectors"])
    assert set(params["shared"]) == {"norm1", "attention", "ls1", "norm2", "mlp", "ls2"}
    _, params = start(VARIANTS["two blocks"])
    assert set(params["shared"]) == {"block_0", "block_1"}
