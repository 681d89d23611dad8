"""An image tower over whole images, and over images of which patches are hidden."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.passes.base import MEAN, STD, Pass, mode, to_network
from smke_jax.passes.draws import DRAWS, OF_NOISE, keys_of
from smke_jax.passes.image_masks import block_masks

TOKEN, ZERO, NOISE = "token", "zero", "noise"
HIDING = (TOKEN, ZERO, NOISE)
ENCODER, MASK_TOKEN = "encoder", "mask_token"  # parameters


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


def whole_image(
    model: nn.Module, network: str, *, makes: str = "image", image: str = "image", mean=MEAN, std=STD
) -> Pass:
    """'<makes>/cls' and '<makes>/mean' (B, D), [CLS] and the mean over patches, and '<makes>/tokens' (B, N, D)."""

    def run(params, arrays, key, train):
        return _parts(makes, _encoded(model, params[network], to_network(arrays[image], mean, std), key, train))

    return Pass(network, (network,), (image,), tuple(f"{makes}/{name}" for name in ("cls", "mean", "tokens")), run)


def masked_image(
    model: nn.Module, network: str, hiding: Hiding, *, makes: str = "image", image: str = "image", mean=MEAN, std=STD
) -> Pass:
    """The same of the image of which `hiding` hides patches, as 'masked_<makes>/…'.

    Also 'masked_<makes>/chosen' (B, N) bool, True at hidden patches, and 'masked_<makes>/pixels' (B, S, S, 3), which are
    what the tower sees, normalised: 0 where a token stands.  Needs 'draws' (B,), see the selection of that name.
    """
    patch, made = model.patch_size, f"masked_{makes}"

    def run(params, arrays, key, train):
        own, pixels = params[network], to_network(arrays[image], mean, std)
        grid = pixels.shape[1] // patch
        mask = block_masks(arrays[DRAWS], grid, hiding.cell // patch, hiding.ratio)
        places = _of_pixels(mask, grid, patch)
        if hiding.by == NOISE:
            draw = lambda key: jax.random.normal(key, pixels.shape[1:])  # noqa: E731
            noise = jax.vmap(draw)(keys_of(arrays[DRAWS], OF_NOISE))
            seen = pixels + hiding.noise * jnp.where(places, noise, 0.0)
        else:
            seen = jnp.where(places, 0.0, pixels)
        hidden = {"hidden": (mask, own[MASK_TOKEN])} if hiding.by == TOKEN else {}
        found = _parts(made, _encoded(model, own, seen, key, train, **hidden))
        return {**found, f"{made}/chosen": mask, f"{made}/pixels": seen}

    provides = tuple(f"{made}/{name}" for name in ("cls", "mean", "tokens", "chosen", "pixels"))
    return Pass(f"{network}/masked", (network,), (image, DRAWS), provides, run)


def _encoded(model: nn.Module, params: Mapping[str, Any], pixels, key, train, **options) -> jax.Array:
    return model.apply({"params": params[ENCODER]}, pixels, **options, **mode(key, train)).astype(jnp.float32)


def _parts(makes: str, x: jax.Array) -> dict[str, jax.Array]:
    tokens = x[:, 1:]
    return {f"{makes}/cls": x[:, 0], f"{makes}/mean": tokens.mean(axis=1), f"{makes}/tokens": tokens}


def _of_pixels(mask: jax.Array, grid: int, patch: int) -> jax.Array:
    """(B, N) of patches -> (B, S, S, 1) of pixels."""
    square = mask.reshape(-1, grid, grid)
    return jnp.repeat(jnp.repeat(square, patch, axis=1), patch, axis=2)[..., None]
