"""Students of the thesis' recipes: their parameter counts, and what they compute against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_student import IDS, IMAGES, MASK, config, of_thesis, reference, start
from torch_parts import assert_near, gradients, quick_jit, to_torch

from smke_jax.models.layers import REMAT
from smke_jax.parallel.mesh import make_mesh, put_batch, replicated
from smke_jax.training.state import count_parameters

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
    student, of_terms, _ = of_thesis(name)
    assert count_parameters((student, of_terms)) == COUNTS[name]


# ---- what they compute

VARIANTS = {
    "as in the thesis": config(depth=1),  # towers with a block each, one shared block, scaled vectors after the towers
    "two shared blocks, no vectors": config({"depth": 2}, token_types=False),
    "MLP, no vectors": config({"type": "mlp"}, token_types=False),
    "vectors before": config(token_types_at="before", token_type_scale=None),
    "scaled vectors before": config(token_types_at="before"),
    "vectors after": config(token_type_scale=None),
}


def weights(shape):
    return np.random.default_rng(shape[-1]).normal(size=shape).astype(np.float32)


@functools.cache
def run(name: str, devices: int = 1):
    """(representations, sown arrays, gradients of the sum of fixed weights · representations)."""
    model, params = start(VARIANTS[name])
    mesh = make_mesh(devices)
    batch = put_batch({"image": IMAGES, "text": IDS, "mask": MASK}, mesh)

    @quick_jit
    def compiled(params, batch):
        def forward(params):
            inputs = batch["image"], batch["text"], batch["mask"]
            (image, text), sown = model.apply({"params": params}, *inputs, mutable=["intermediates"])
            out = {"image": image, "text": text}
            return sum(jnp.sum(weights(x.shape) * x) for x in jax.tree.leaves(out)), (out, sown["intermediates"])

        (_, outputs), gradients = jax.value_and_grad(forward, has_aux=True)(params)
        return *outputs, gradients

    with jax.default_matmul_precision("highest"):
        return jax.device_get(compiled(jax.device_put(params, replicated(mesh)), batch))


def assert_equals_pytorch(name, out, grads):
    params = to_torch(start(VARIANTS[name])[1])
    for modality in ("image", "text"):
        expected = {level: x[:, 0] for level, x in reference(params, modality, VARIANTS[name]).items()}
        sum((x * torch.tensor(weights(x.shape))).sum() for x in expected.values()).backward()
        assert set(out[modality]) == set(expected)
        for level, x in expected.items():
            assert_near(out[modality][level], x.detach().numpy())
    assert all(x.grad is not None for x in jax.tree.leaves(params)), "a parameter that PyTorch does not use"
    assert_near(grads, gradients(params))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_equals_pytorch(name):
    out, _, grads = run(name)
    assert_equals_pytorch(name, out, grads)


def test_a_batch_over_eight_devices_gives_the_same():
    out, _, grads = run("vectors before", devices=8)
    assert_equals_pytorch("vectors before", out, grads)


def test_sown_tokens_are_out_and_head_of_the_other_positions():
    name = "as in the thesis"
    _, sown, _ = run(name)
    params = to_torch(start(VARIANTS[name])[1])
    for i, modality in enumerate(("image", "text")):  # sown in this order
        expected = reference(params, modality, VARIANTS[name])
        assert_near(sown["tokens"][i], expected["out"][:, 1:].detach().numpy())
        assert_near(sown["head_tokens"][i], expected["head"][:, 1:].detach().numpy())


@functools.cache
def text_with(remat: str):
    """Representations of the captions, through a tower and a shared block, and gradients."""
    model, params = start(config(depth=1, remat=remat))

    def forward(params):
        text = model.apply({"params": params}, IDS, MASK, method="encode_text")
        return sum(jnp.sum(weights(x.shape) * x) for x in text.values()), text

    (_, text), gradients = quick_jit(jax.value_and_grad(forward, has_aux=True))(params)
    return text, gradients


@pytest.mark.parametrize("remat", sorted(set(REMAT) - {"none"}))
def test_remat_changes_no_number(remat):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), text_with(remat), text_with("none")
    )


def test_a_single_shared_block_has_no_level_of_its_own():
    assert set(start(VARIANTS["as in the thesis"])[1]["shared"]) == {
        "norm1", "attention", "ls1", "norm2", "mlp", "ls2"
    }  # fmt: skip
    assert set(start(VARIANTS["two shared blocks, no vectors"])[1]["shared"]) == {"block_0", "block_1"}
