"""An image tower over whole images, and over images of which patches are hidden."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.passes.base import MEAN, STD, Pass, mode, to_network
from smke_jax.passes.example_keys import SEED, example_keys
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

    Also 'masked_<makes>/mask' (B, N) int32, 1 at hidden patches, and 'masked_<makes>/pixels' (B, S, S, 3), normalised,
    what the tower sees: 0 where a token stands.  Needs 'mask_seed' (B,): see `smke_jax.selections.mask_seeds`.
    """
    patch, made = model.patch_size, f"masked_{makes}"

    def run(params, arrays, key, train):
        own, pixels = params[network], to_network(arrays[image], mean, std)
        grid = pixels.shape[1] // patch
        mask = block_masks(arrays[SEED], grid, hiding.cell // patch, hiding.ratio)
        places = _of_pixels(mask, grid, patch)
        if hiding.by == NOISE:
            draw = lambda key: jax.random.normal(key, pixels.shape[1:])  # noqa: E731
            noise = jax.vmap(draw)(example_keys(arrays[SEED], "image noise"))
            seen = pixels + hiding.noise * jnp.where(places, noise, 0.0)
        else:
            seen = jnp.where(places, 0.0, pixels)
        hidden = {"hidden": (mask, own[MASK_TOKEN])} if hiding.by == TOKEN else {}
        found = _parts(made, _encoded(model, own, seen, key, train, **hidden))
        return {**found, f"{made}/mask": mask.astype(jnp.int32), f"{made}/pixels": seen}

    provides = tuple(f"{made}/{name}" for name in ("cls", "mean", "tokens", "mask", "pixels"))
    return Pass(f"{network}/masked", (network,), (image, SEED), provides, run)


def _encoded(model: nn.Module, params: Mapping[str, Any], pixels, key, train, **options) -> jax.Array:
    return model.apply({"params": params[ENCODER]}, pixels, **options, **mode(key, train)).astype(jnp.float32)


def _parts(makes: str, x: jax.Array) -> dict[str, jax.Array]:
    tokens = x[:, 1:]
    return {f"{makes}/cls": x[:, 0], f"{makes}/mean": tokens.mean(axis=1), f"{makes}/tokens": tokens}


def _of_pixels(mask: jax.Array, grid: int, patch: int) -> jax.Array:
    """(B, N) of patches -> (B, S, S, 1) of pixels."""
    square = mask.reshape(-1, grid, grid)
    return jnp.repeat(jnp.repeat(square, patch, axis=1), patch, axis=2)[..., None]
