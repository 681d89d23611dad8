"""What a hidden patch is rebuilt as: its pixels, or its histograms of oriented gradients (HOG)."""

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.models.vision import patchify
from smke_jax.passes.base import MEAN, STD, Pass, to_network

BINS = 9  # of the directions of gradients, over half a turn
TARGETS = ("hog", "pixel", "pixel_norm")


def patch_targets(
    network: str, patch_size: int, *, makes: str = "image", image: str = "image", hog_cells: int = 2, mean=MEAN, std=STD
) -> Pass:
    """'<makes>/hog' (B, N, 27 · hog_cells²), '<makes>/pixel' and '<makes>/pixel_norm' (B, N, 3 · patch_size²).

    Of the normalised pixels of every patch of the array `image`; `network` names the pass, which has no parameters.
    """

    def run(params, arrays, key, train):
        pixels = to_network(arrays[image], mean, std)
        patches = patchify(pixels, patch_size)
        # Statistics of pixels scale a channel as a whole, which cancels in HOG.  Gradients of whole numbers are exact:
        # one that is 0 along an axis stays so, and does not fall into another bin by rounding.
        raw = arrays[image].astype(jnp.float32)
        made = {"hog": hog(raw, patch_size, hog_cells), "pixel": patches, "pixel_norm": normalised(patches)}
        return {f"{makes}/{name}": x for name, x in made.items()}

    return Pass(f"{network}/targets", (), (image,), tuple(f"{makes}/{name}" for name in TARGETS), run)


def check_hog(patch_size: int, cells: int) -> None:
    """Raises UserError where a patch does not divide into `cells` squares per side."""
    if cells < 1 or patch_size % cells:
        raise UserError(f"hog_cells is {cells}: give a number that divides the patch size {patch_size}")


def hog(images: jax.Array, patch_size: int, cells: int = 2) -> jax.Array:
    """Histograms of oriented gradients of every patch.  (B, S, S, 3) -> (B, N, 3 · 9 · cells²).

    Gradients by Sobel's filter in each channel, the image reflected at its border.  Each pixel adds the length of its
    gradient to one of nine bins of the direction over half a turn: a direction and its opposite are the same.  The bins
    of the `cells` · `cells` squares of each patch are divided by their length, in every channel by itself.
    The values of a patch are in the order channel, bin, row and column of the square.
    Source: MaskFeat (Wei et al. 2022), section 3.2, as in its code: a vote is for one bin, without a window (spec B.9).
    """
    x = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    across, down = x[:, :, :-2] - x[:, :, 2:], x[:, :-2] - x[:, 2:]
    gx = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    gy = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    length = jnp.sqrt(jnp.square(gx) + jnp.square(gy))
    bins = jnp.mod(jnp.floor(BINS * jnp.arctan2(gx, gy) / jnp.pi), BINS)
    rows, size, grid = len(images), patch_size // cells, images.shape[1] // patch_size
    shape = (rows, grid, cells, size, grid, cells, size, 3)
    # Bin after bin: all votes at once would take nine times the memory of the image.
    sums = [jnp.where(bins == i, length, 0.0).reshape(shape).sum(axis=(3, 6)) for i in range(BINS)]
    sums = jnp.stack(sums, axis=-1)  # (B, grid, cells, grid, cells, 3, 9)
    sums /= jnp.maximum(jnp.linalg.norm(sums, axis=-1, keepdims=True), 1e-12)
    return sums.transpose(0, 1, 3, 5, 6, 2, 4).reshape(rows, grid * grid, -1)


def normalised(patches: jax.Array) -> jax.Array:
    """Every patch with the mean 0 and the variance 1 over its own values.  (B, N, K) -> (B, N, K).

    Source: MAE (He et al. 2022), section 3, as in its code: the unbiased variance, plus 1e-6.
    """
    centred = patches - patches.mean(axis=2, keepdims=True)
    variance = jnp.square(centred).sum(axis=2, keepdims=True) / (patches.shape[2] - 1)
    return centred * jax.lax.rsqrt(variance + 1e-6)
