"""Late interaction of patches and words against float64 PyTorch with all cosines at once, on 1, 2 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec

from smke_jax.losses import tokens
from smke_jax.losses.collective import ALONE, Scope
from smke_jax.losses.contrastive import matrix_info_nce
from smke_jax.losses.tokens import late_interaction
from smke_jax.parallel.mesh import DATA_AXES, make_mesh

BATCH, PATCHES, WORDS, WIDTH = 16, 5, 4, 6
MASK = (np.arange(WORDS) < np.array([4, 1, 2, 3, 0, 4, 4, 1, 2, 2, 0, 3, 1, 4, 2, 3])[:, None]).astype(np.int32)
IDS = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0], np.int32)
SCALE = np.float32(7.0)


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


rng = np.random.default_rng(0)
PATCH_TOKENS = unit(rng.normal(size=(BATCH, PATCHES, WIDTH)))
WORD_TOKENS = unit(rng.normal(size=(BATCH, WORDS, WIDTH)))


def reference(ids=None):
    """(losses, gradients of patches, words and scale) of both directions together."""
    patches, words, scale = (
        torch.tensor(x.astype(np.float64), requires_grad=True) for x in (PATCH_TOKENS, WORD_TOKENS, SCALE)
    )
    mask = torch.tensor(MASK, dtype=torch.bool)
    cosines = torch.einsum("and,bld->abnl", patches, words)
    of_images = torch.full((BATCH, BATCH), -1.0, dtype=torch.float64)
    of_captions = torch.zeros((BATCH, BATCH), dtype=torch.float64)
    for b in range(BATCH):
        if mask[b].any():
            here = cosines[:, b][:, :, mask[b]]  # (images, patches, words)
            of_images[:, b] = here.amax(2).mean(1)
            of_captions[b] = here.amax(1).mean(1)
    same = torch.zeros(BATCH, BATCH, dtype=torch.bool)
    if ids is not None:
        same = torch.tensor(ids[:, None] == ids) & ~torch.eye(BATCH, dtype=torch.bool)
    labels = torch.arange(BATCH)
    losses = [
        torch.nn.functional.cross_entropy((scale * scores).masked_fill(same, float("-inf")), labels)
        for scores in (of_images, of_captions)
    ]
    sum(losses).backward()
    return [x.item() for x in losses], [x.grad.numpy() for x in (patches, words, scale)]


def both_losses(patches, words, mask, ids, scale, scope):
    pair = late_interaction(patches, words, mask, scope=scope)
    found = [matrix_info_nce(scores, scale, scope=scope, ids=ids) for scores in pair]
    return [jax.lax.pmean(loss, DATA_AXES) if scope.axis else loss for loss, _ in found]


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("same_image", [False, True], ids=["all", "same image masked"])
def test_value_and_gradient(devices, same_image, monkeypatch):
    """In blocks of three captions, of which 16 are no multiple."""
    monkeypatch.setattr(tokens, "BLOCK", 3 * BATCH // devices * PATCHES * WORDS)
    rows, whole = PartitionSpec(DATA_AXES), PartitionSpec()
    ids = IDS if same_image else np.arange(BATCH, dtype=np.int32)
    mesh = make_mesh(devices, fsdp_size=2 if devices == 8 else 1)
    run = jax.shard_map(
        lambda *arrays: both_losses(*arrays, Scope(DATA_AXES)),
        mesh=mesh, in_specs=(rows, rows, rows, rows, whole), out_specs=whole,
    )  # fmt: skip

    def total(patches, words, scale):
        losses = run(patches, words, MASK, ids, scale)
        return sum(losses), losses

    with jax.default_matmul_precision("highest"):
        (_, losses), grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(
            PATCH_TOKENS, WORD_TOKENS, SCALE
        )
    expected, expected_grads = reference(IDS if same_image else None)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
    assert np.all(np.asarray(grads[1])[MASK == 0] == 0), "padding learns"


def test_all_cosines_never_exist_at_once(monkeypatch):
    count, patches, words = 24, 16, 16
    monkeypatch.setattr(tokens, "BLOCK", 2 * count * patches * words)
    shapes = [jax.ShapeDtypeStruct((count, length, 8), jnp.float32) for length in (patches, words)]

    def loss(patches, words):
        return sum(jnp.sum(x) for x in late_interaction(patches, words, jnp.ones((count, 16))))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < count * count * patches * words * 4 / 2


def test_likeness_of_one_pair_by_hand():
    patches = jnp.array([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    words = jnp.array([[[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]]])  # the last is padding
    of_image, of_caption = late_interaction(patches, words, jnp.array([[1, 1, 0]]), scope=ALONE)
    np.testing.assert_allclose(of_image, [[(1.0 + 0.8 - 0.6) / 3]], rtol=1e-6)
    np.testing.assert_allclose(of_caption, [[(0.8 + 1.0) / 2]], rtol=1e-6)
