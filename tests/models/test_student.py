"""The student: the parameter counts of the thesis, and the whole of it against a PyTorch composition."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_parts import assert_near, block, gradients, layer_norm, linear, quick_jit, randomised, to_torch

from smke_jax.models.layers import Block
from smke_jax.models.student import Student, build_student
from smke_jax.models.text import TextEncoder
from smke_jax.models.vision import ImageEncoder, sincos_positions
from smke_jax.parallel.mesh import make_mesh, put_batch, replicated
from smke_jax.passes.base import apply_and_reveal
from smke_jax.training.recipe import build_recipe, init_params
from smke_jax.training.state import count_parameters

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEADS, MLP, TARGET = 8, 2, 12, 6
SIZE, PATCH, BATCH = 8, 4, 8

rng = np.random.default_rng(0)
IMAGES = rng.normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
IDS = rng.integers(1, 9, (BATCH, 5)).astype(np.int32)
MASK = (np.arange(5) < rng.integers(2, 6, (BATCH, 1))).astype(np.int32)
KEYS = [(side, level) for side in ("image", "text") for level in ("fc1", "out", "head")]
COTANGENTS = {
    (side, level): rng.normal(size=(BATCH, {"fc1": MLP, "out": WIDTH, "head": TARGET}[level])).astype(np.float32)
    for side, level in KEYS
}


def student(**options) -> Student:
    tower = dict(width=WIDTH, depth=1, num_heads=HEADS, mlp_dim=MLP)
    parts = dict(
        image_encoder=ImageEncoder(image_size=SIZE, patch_size=PATCH, **tower),
        text_encoder=TextEncoder(vocab_size=9, max_positions=8, **tower),
        shared=Block(HEADS, MLP, norm_order="pre", attention_biases="qv", layer_scale=0.2),
        target_dim=TARGET,
    )
    return Student(**parts | options)


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), IMAGES, IDS, MASK)["params"]


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def full_size():
    config = runpy.run_path(str(ROOT / "configs/s_smke.py"))["get_config"]()
    recipe = build_recipe(config, vocab_size=30522)
    size = config.student.image.image_size
    rows, length = config.batch_size, config.data.max_length
    batch = {
        "image": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "text_mask": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "id": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    return jax.eval_shape(lambda: init_params(recipe, jax.random.key(0), batch))


def test_parameter_counts_of_the_thesis(full_size):
    """Spec 25, to the last parameter."""
    params, _ = full_size
    assert count_parameters(params) == 117_167_618
    parts = params["student"]
    assert count(parts["image_encoder"]) == 43_120_128
    assert count(parts["text_encoder"]) == 66_364_416
    assert count(parts["shared"]) == 7_088_640
    assert count(parts["head_norm"]) + count(parts["head"]) == 592_128
    assert parts["type_embedding"].shape == (2, 768)
    assert count(parts["type_scale"]) == 768
    assert set(parts) == {
        "image_encoder", "text_encoder", "shared", "head_norm", "head", "type_embedding", "type_scale"
    }  # fmt: skip
    assert jax.tree.map(lambda x: x.shape, params["terms"]) == {"itc": {"logit_scale": (2,)}, "target_itc": {}}
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params)), "parameters stay fp32"


def test_memory_bank_of_the_thesis(full_size):
    _, slots = full_size
    assert slots["itc"] == ()
    assert slots["target_itc"].features.shape == (65_536, 768)
    assert slots["target_itc"].ids.shape == (65_536,)


def reference(p, modality):
    """{level: (B, L, …)} of one modality in PyTorch, composed of parts that test_towers checks one by one."""
    if modality == "image":
        e = p["image_encoder"]
        x = torch.nn.functional.conv2d(
            torch.tensor(IMAGES.transpose(0, 3, 1, 2), dtype=torch.float64),
            e["patch_embed"]["kernel"].permute(3, 2, 0, 1),
            e["patch_embed"]["bias"],
            stride=PATCH,
        ).flatten(2)
        x = x.transpose(1, 2) + torch.tensor(sincos_positions(SIZE // PATCH, WIDTH), dtype=torch.float64)
        x = layer_norm(e["norm"], torch.cat([e["cls_token"].expand(BATCH, 1, WIDTH), x], dim=1), 1e-6)
        mask, row, eps = None, 1, 1e-6
    else:
        e = p["text_encoder"]
        x = e["word_embedding"][torch.tensor(IDS, dtype=torch.long)] + e["position_embedding"][: IDS.shape[1]]
        x = layer_norm(e["embedding_norm"], x + e["type_embedding"][0], 1e-12)
        mask, row, eps = torch.tensor(MASK, dtype=torch.bool), 0, 1e-12
    x = block(e["block_0"], x, heads=HEADS, order="post", eps=eps, mask=mask)[0]
    if "type_embedding" in p:
        x = x + p["type_scale"]["gamma"] * p["type_embedding"][row]
    out, fc1, _ = block(p["shared"], x, heads=HEADS, order="pre", eps=1e-6, mask=mask)
    return {"fc1": fc1, "out": out, "head": linear(p["head"], layer_norm(p["head_norm"], out, 1e-6))}


@pytest.mark.parametrize("devices,token_types", [(1, True), (2, True), (8, True), (1, False)])
def test_student_equals_pytorch(devices, token_types):
    model = student(token_types=token_types)
    shapes = shapes_of(model)
    assert token_types == ("type_embedding" in shapes) == ("type_scale" in shapes)
    params = randomised(shapes, seed=1)
    mesh = make_mesh(devices)
    batch = put_batch({"image": IMAGES, "text": IDS, "mask": MASK}, mesh)

    @quick_jit
    def run(params, batch):
        def forward(p):
            image, text = model.apply({"params": p}, batch["image"], batch["text"], batch["mask"])
            return {("image", k): v for k, v in image.items()} | {("text", k): v for k, v in text.items()}

        out, vjp = jax.vjp(forward, params)
        return out, vjp({key: COTANGENTS[key] for key in out})[0]

    with jax.default_matmul_precision("highest"):
        out, grads = run(jax.device_put(params, replicated(mesh)), batch)

    p = to_torch(params)
    expected = {(side, level): x[:, 0] for side in ("image", "text") for level, x in reference(p, side).items()}
    sum((expected[key] * torch.tensor(COTANGENTS[key])).sum() for key in KEYS).backward()
    assert set(out) == set(expected)
    for key in KEYS:
        assert_near(out[key], expected[key].detach().numpy())
    used = [x for x in jax.tree.leaves(p) if x.grad is None]
    assert not used, "a parameter that PyTorch does not use"
    assert_near(grads, gradients(p))


@pytest.mark.parametrize("side,inputs", [("image", (IMAGES,)), ("text", (IDS, MASK))], ids=["image", "text"])
def test_sown_tokens_are_out_and_head_of_the_other_positions(side, inputs):
    model = student()
    params = randomised(shapes_of(model), seed=5)
    run = quick_jit(lambda *arrays: apply_and_reveal(model, *arrays, method=f"encode_{side}"))
    with jax.default_matmul_precision("highest"):
        _, sown = run(params, *inputs)
    expected = reference(to_torch(params), side)
    assert set(sown) == {"tokens", "head_tokens"}
    assert_near(sown["tokens"], expected["out"][:, 1:].detach().numpy())
    assert_near(sown["head_tokens"], expected["head"][:, 1:].detach().numpy())


def test_methods_equal_the_call():
    model = student()
    params = randomised(shapes_of(model), seed=2)
    params = jax.tree.map(jnp.asarray, params)
    both = model.apply({"params": params}, IMAGES, IDS, MASK)
    image = model.apply({"params": params}, IMAGES, method="encode_image")
    text = model.apply({"params": params}, IDS, MASK, method="encode_text")
    jax.tree.map(np.testing.assert_array_equal, both, (image, text))


def test_token_types_are_row_0_for_text_and_row_1_for_images():
    model = student()
    params = jax.tree.map(jnp.asarray, randomised(shapes_of(model), seed=3))

    def out(row):
        table = params["type_embedding"].at[row].add(3.0)
        image, text = model.apply({"params": params | {"type_embedding": table}}, IMAGES, IDS, MASK)
        return image["out"], text["out"]

    image, text = (x["out"] for x in model.apply({"params": params}, IMAGES, IDS, MASK))
    image_0, text_0 = out(0)
    np.testing.assert_array_equal(image_0, image)
    assert np.abs(text_0 - text).max() > 1e-2
    image_1, text_1 = out(1)
    np.testing.assert_array_equal(text_1, text)
    assert np.abs(image_1 - image).max() > 1e-2


def test_token_types_start_as_almost_nothing():
    gamma = quick_jit(student().init)(jax.random.key(0), IMAGES, IDS, MASK)["params"]["type_scale"]["gamma"]
    np.testing.assert_array_equal(gamma, np.full(WIDTH, 1e-5, np.float32))


def test_text_does_not_depend_on_padding():
    model = student()
    params = jax.tree.map(jnp.asarray, randomised(shapes_of(model), seed=4))

    def encode(ids, mask):
        return model.apply({"params": params}, ids, mask, method="encode_text")

    short = encode(IDS, MASK)
    ids, mask = np.where(MASK == 1, IDS, 8), np.pad(MASK, ((0, 0), (0, 3)))
    longer = encode(np.pad(ids, ((0, 0), (0, 3)), constant_values=7), mask)
    for level in short:
        np.testing.assert_allclose(longer[level], short[level], rtol=1e-4, atol=1e-4)
    assert np.abs(encode(IDS, np.ones_like(MASK))["out"] - short["out"]).max() > 1e-2, "the mask does nothing"


def test_different_widths_are_refused():
    wide = TextEncoder(vocab_size=9, max_positions=8, width=16, depth=1, num_heads=HEADS, mlp_dim=MLP)
    with pytest.raises(ValueError, match="equal widths: image 8, text 16"):
        shapes_of(student(text_encoder=wide))


def test_build_student_reads_the_config():
    config = runpy.run_path(str(ROOT / "configs/s_smke.py"))["get_config"]()
    config.student.text.dropout, config.student.image.token_drop = 0.1, 0.5
    config.student.shared.layer_scale = 0.3
    model = build_student(config.student, vocab_size=123, target_dim=7)
    assert (model.text_encoder.vocab_size, model.target_dim) == (123, 7)
    assert (model.text_encoder.norm_eps, model.image_encoder.norm_eps, model.shared.norm_eps) == (1e-12, 1e-6, 1e-6)
    assert (model.text_encoder.norm_order, model.image_encoder.norm_order) == ("post", "post")
    assert (model.shared.depth, model.shared.layer_scale) == (1, 0.3)
    assert (model.text_encoder.dropout, model.image_encoder.token_drop) == (0.1, 0.5)
    assert model.dtype == model.image_encoder.dtype == model.text_encoder.dtype == model.shared.dtype == jnp.bfloat16
