"""Late interaction of patches and words against float64 PyTorch with all cosines at once, on 1, 2 and 8 devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from over_devices import DEVICES, run_together, spread, tensors, unit_rows

from smke_jax.losses import tokens
from smke_jax.losses.contrastive import matrix_info_nce
from smke_jax.losses.tokens import late_interaction

BATCH, PATCHES, WORDS, WIDTH = 16, 5, 4, 6
MASK = (np.arange(WORDS) < np.array([4, 1, 2, 3, 0, 4, 4, 1, 2, 2, 0, 3, 1, 4, 2, 3])[:, None]).astype(np.int32)
IDS = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0], np.int32)
SCALE = np.float32(7.0)


rng = np.random.default_rng(0)
PATCH_TOKENS, WORD_TOKENS = unit_rows(rng, BATCH, PATCHES, WIDTH), unit_rows(rng, BATCH, WORDS, WIDTH)


def reference(ids=None):
    """(losses, gradients of patches, words and scale) of both directions together."""
    patches, words, scale = tensors(PATCH_TOKENS, WORD_TOKENS, SCALE)
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


def both_losses(patches, words, mask, ids, scale, scope, with_ids):
    """(Sum, both) of the losses of images and of captions."""
    scores = late_interaction(patches, words, mask, scope=scope)
    losses = [matrix_info_nce(one, scale, scope=scope, ids=ids if with_ids else None)[0] for one in scores]
    return sum(losses), losses


@pytest.fixture(scope="module", params=DEVICES)
def outcomes(request):
    """{with ids?: ((sum, losses), gradients of patches, words and scale)}, compiled as one program."""
    devices = request.param
    cases = {
        with_ids: spread(devices, functools.partial(both_losses, with_ids=with_ids), whole=(4,))
        for with_ids in (False, True)
    }
    with pytest.MonkeyPatch.context() as patch:
        # Blocks of three captions, of which 16 are no multiple.
        patch.setattr(tokens, "BLOCK", 3 * BATCH // devices * PATCHES * WORDS)
        return run_together(cases, (PATCH_TOKENS, WORD_TOKENS, MASK, IDS, SCALE), to=(0, 1, 4))


@pytest.mark.parametrize("with_ids", [False, True], ids=["all", "same image masked"])
def test_value_and_gradient(outcomes, with_ids):
    (_, losses), gradients = outcomes[with_ids]
    expected, expected_gradients = reference(IDS if with_ids else None)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())
    assert np.all(gradients[1][MASK == 0] == 0), "padding learns"


def test_all_cosines_never_exist_at_once(monkeypatch):
    count, patches, words = 24, 16, 16
    monkeypatch.setattr(tokens, "BLOCK", 2 * count * patches * words)
    shapes = [jax.ShapeDtypeStruct((count, length, 8), jnp.float32) for length in (patches, words)]

    def loss(patches, words):
        return sum(jnp.sum(x) for x in late_interaction(patches, words, jnp.ones((count, 16))))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < count * count * patches * words * 4 / 2


def test_similarity_of_one_pair_by_hand():
    patches = jnp.array([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    words = jnp.array([[[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]]])  # the last is padding
    of_image, of_caption = jax.jit(late_interaction)(patches, words, jnp.array([[1, 1, 0]]))
    np.testing.assert_allclose(of_image, [[(1.0 + 0.8 - 0.6) / 3]], rtol=1e-6)
    np.testing.assert_allclose(of_caption, [[(0.8 + 1.0) / 2]], rtol=1e-6)
