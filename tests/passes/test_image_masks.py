"""Hidden blocks of patches: the reference counts, whole blocks, all alike likely, and what cannot be divided."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smke_jax.errors import UserError
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.passes.base import Pass
from smke_jax.passes.image_masks import block_mask, block_masks, check_blocks
from smke_jax.passes.micro_batch import in_micro_batches
from smke_jax.selections.draws import draws
from smke_jax.training.step import run_selection

BATCH = 16
IDS = np.arange(BATCH, dtype=np.int32) // 2  # two rows of each image


@pytest.mark.parametrize(
    "image, patch, cell, ratio, blocks, patches",
    [
        (224, 16, 32, 0.75, 37, 148),  # spec B.4
        (224, 16, 32, 0.6, 30, 120),  # SimMIM
        (224, 16, 16, 0.4, 79, 79),
        (112, 14, 28, 0.75, 12, 48),
        (160, 16, 16, 0.07, 7, 7),  # 0.07 · 100 is above 7 in floating point
        (32, 16, 16, 1.0, 4, 4),
    ],
)
def test_counts_and_whole_blocks(image, patch, cell, ratio, blocks, patches):
    check_blocks(image, patch, cell, ratio, whole=True)
    grid, per = image // patch, cell // patch
    for number in range(5):
        mask = np.asarray(block_mask(jax.random.key(number), grid, per, ratio))
        assert mask.shape == (grid * grid,) and mask.dtype == bool and mask.sum() == patches
        side = grid // per
        cells = mask.reshape(side, per, side, per)
        assert np.all(cells == cells[:, :1, :, :1]) and cells[:, 0, :, 0].sum() == blocks


def test_every_block_is_as_likely_as_any_other():
    count = 2000
    masks = np.asarray(block_masks(jnp.arange(count), 6, 2, 0.5)).reshape(count, 6, 6)[:, ::2, ::2].reshape(count, 9)
    share = 5 / 9
    assert np.all(np.abs(masks.mean(0) - share) < 5 * np.sqrt(share * (1 - share) / count))


def drawn(devices, key, micro_batch=0):
    """The masks (BATCH, 16) of a step's rows, as a pass in micro-batches draws them."""
    mesh = make_mesh(devices)
    batch = put_batch({"id": IDS}, mesh)
    hide = Pass("hide", (), ("draws",), ("mask",), lambda p, a, *_: {"mask": block_masks(a["draws"], 4, 1, 0.5)})
    hide = in_micro_batches(hide, mesh, micro_batch)

    @jax.jit
    def run(key):
        seeds = run_selection(draws(), mesh, {}, batch, key=key)
        return hide.run({}, seeds, key, True)["mask"]

    return np.asarray(run(key))


def test_masks_are_those_of_the_step_on_any_devices_and_in_micro_batches():
    key = jax.random.key(3)
    masks = drawn(1, key)
    assert len({mask.tobytes() for mask in masks}) > BATCH / 2, "rows have masks of their own, those of one image too"
    for devices, micro_batch in ((2, 0), (8, 0), (1, 4), (2, 2)):
        np.testing.assert_array_equal(drawn(devices, key, micro_batch), masks)
    assert np.any(drawn(1, jax.random.key(4)) != masks), "the next step hides something else"


@pytest.mark.parametrize(
    "sizes, said",
    [
        ((224, 16, 32, 0.0), "mask_ratio is 0.0: give a share above 0 and at most 1"),
        ((224, 16, 32, 1.5), "mask_ratio is 1.5: give"),
        ((224, 16, 32, float("nan")), "mask_ratio is nan: give"),
        ((224, 16, 24, 0.5), "mask_cell 24 is no multiple of the patch size 16: set it to one"),
        ((224, 16, 0, 0.5), "mask_cell 0 is no multiple"),
        ((240, 16, 32, 0.5), "image_size 240 is no multiple of mask_cell 32: set it to one"),
        ((64, 16, 32, 0.8), "mask_ratio 0.8 hides all of the 4 blocks of an image: lower it or mask_cell"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(sizes, said):
    with pytest.raises(UserError, match=said) as caught:
        check_blocks(*sizes)
    assert "\n" not in str(caught.value)
