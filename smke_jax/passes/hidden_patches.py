"""What an image tower sees of an image of which patches are hidden."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.limits import AT_LEAST_0, AT_LEAST_1
from smke_jax.passes.draws import OF_NOISE, keys_of
from smke_jax.passes.image_masks import block_masks, check_blocks, check_ratio

TOKEN, ZERO, NOISE = "token", "zero", "noise"
HIDING = (TOKEN, ZERO, NOISE)
MASK_TOKEN = "mask_token"  # the parameter of a network that hides patches by a token


class Hiding(NamedTuple):
    """What is hidden of an image, and how.

    cell:  pixels per side of the blocks that are hidden as a whole
    ratio: share of the blocks, see `block_mask`
    by:    of HIDING.  'token': a learned vector in place of the embedded patch (SimMIM).  'zero': the normalised pixels
           are 0 (MAMO).  'noise': Gaussian noise is added to the normalised pixels (denoising)
    noise: its standard deviation
    """

    cell: int = 32
    ratio: float = 0.75
    by: str = TOKEN
    noise: float = 1.0

    def check_options(self) -> None:
        """Raises UserError for what no image could be hidden by, also where `cell` is 0 and nothing is hidden."""
        if self.by not in HIDING:
            raise UserError(f"hide_by is {self.by!r}: give {', '.join(HIDING[:-1])} or {HIDING[-1]}")
        AT_LEAST_0.check("noise", self.noise)
        if self.by != NOISE and self.noise != self._field_defaults["noise"]:
            raise UserError(f"noise is {self.noise}, and hide_by={self.by} adds none: set hide_by={NOISE}")
        check_ratio(self.ratio)

    def check(self, image_size: int, patch_size: int) -> None:
        """Raises UserError where it does not fit images and patches of so many pixels."""
        check_blocks(image_size, patch_size, self.cell, self.ratio, whole=self.by == NOISE)

    def token(self, key: jax.Array, width: int) -> dict[str, jax.Array]:
        """{MASK_TOKEN: (width,)} at random, {} where no token hides anything.  Source: SimMIM."""
        if self.by != TOKEN:
            return {}
        return {MASK_TOKEN: jax.nn.initializers.truncated_normal(0.02)(key, (width,))}


def hiding_of(cell: int, ratio: float, by: str, noise: float, hog_cells: int) -> Hiding | None:
    """What the options of a network say, None where `cell` is 0; UserError for an option that is wrong in any case."""
    hiding = Hiding(cell, ratio, by, noise)
    hiding.check_options()
    AT_LEAST_1.check("hog_cells", hog_cells)
    return hiding if cell else None


def hidden_patches(pixels: jax.Array, draws: jax.Array, patch_size: int, hiding: Hiding) -> tuple[jax.Array, jax.Array]:
    """Normalised pixels (B, S, S, 3) and each row's number in `draws` (B,) -> (what is seen of them, mask (B, N) bool).

    Hidden pixels are 0, or have noise of the row's own added to them.  The mask is True at hidden patches.
    """
    grid = pixels.shape[1] // patch_size
    mask = block_masks(draws, grid, hiding.cell // patch_size, hiding.ratio)
    square = mask.reshape(-1, grid, grid)
    places = jnp.repeat(jnp.repeat(square, patch_size, axis=1), patch_size, axis=2)[..., None]  # of pixels
    if hiding.by != NOISE:
        return jnp.where(places, 0.0, pixels), mask
    noise = jax.vmap(lambda key: jax.random.normal(key, pixels.shape[1:]))(keys_of(draws, OF_NOISE))
    return pixels + hiding.noise * jnp.where(places, noise, 0.0), mask


def hidden_by(params, mask: jax.Array, hiding: Hiding) -> tuple[jax.Array, jax.Array] | None:
    """`hidden` of an image tower (`smke_jax.models.vision.hide`), whose mask token is among `params`."""
    return (mask, params[MASK_TOKEN]) if hiding.by == TOKEN else None
