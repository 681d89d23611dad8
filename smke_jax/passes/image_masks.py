"""Which patches of an image are hidden: square blocks of patches, drawn for every example (SimMIM, Xie et al. 2022)."""

import math

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.passes.draws import OF_IMAGES, keys_of


def block_mask(key: jax.Array, grid: int, cell: int, ratio: float) -> jax.Array:
    """True at the hidden patches of one image -> bool (grid · grid,), row by row.

    grid:  patches per side of the image
    cell:  patches per side of a block, which is hidden as a whole; it divides `grid`
    ratio: share of the blocks that are hidden, rounded up: at 0.75 37 of 49 blocks, which are 148 of 196 patches
    Source: spec B.4; SimMIM, section 3.1, in the form of its code, which rounds up.
    """
    side = grid // cell
    noise = jax.random.uniform(key, (side * side,))
    hidden = jnp.argsort(jnp.argsort(noise)) < hidden_blocks(side * side, ratio)
    return jnp.repeat(jnp.repeat(hidden.reshape(side, side), cell, axis=0), cell, axis=1).reshape(-1)


def block_masks(draws: jax.Array, grid: int, cell: int, ratio: float) -> jax.Array:
    """`block_mask` of each row, from its own number in `draws` (b,) -> bool (b, grid · grid)."""
    return jax.vmap(lambda key: block_mask(key, grid, cell, ratio))(keys_of(draws, OF_IMAGES))


def hidden_blocks(blocks: int, ratio: float) -> int:
    """How many of so many blocks are hidden; 0.07 of 100 are 7, although 0.07 · 100 > 7 in floating point."""
    return math.ceil(ratio * blocks - 1e-9)


def check_ratio(ratio: float) -> None:
    """Raises UserError for a share of hidden blocks that is none."""
    if not 0 < ratio <= 1:
        raise UserError(f"mask_ratio is {ratio}: give a share above 0 and at most 1")


def check_blocks(image_size: int, patch_size: int, cell: int, ratio: float, *, whole: bool = False) -> None:
    """Raises UserError where images of `image_size` pixels do not divide into blocks of `cell` pixels.

    patch_size: pixels per side of a patch, of which a block holds whole ones
    whole:      whether all of an image may be hidden
    """
    check_ratio(ratio)
    if cell < 1 or cell % patch_size:
        raise UserError(f"mask_cell {cell} is no multiple of the patch size {patch_size}: set it to one")
    if image_size % cell:
        raise UserError(f"image_size {image_size} is no multiple of mask_cell {cell}: set it to one")
    blocks = (image_size // cell) ** 2
    if not whole and hidden_blocks(blocks, ratio) == blocks:
        raise UserError(f"mask_ratio {ratio} hides all of the {blocks} blocks of an image: lower it or mask_cell")
