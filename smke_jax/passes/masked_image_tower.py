"""An image tower over whole images, and over images of which patches are hidden."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.passes.base import MEAN, STD, Pass, mode, to_network
from smke_jax.passes.draws import DRAWS
from smke_jax.passes.hidden_patches import Hiding, hidden_by, hidden_patches

ENCODER = "encoder"  # its parameters, beside the mask token


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

    Also 'masked_<makes>/chosen' (B, N) bool, True at hidden patches, drawn from 'draws' (B,), and
    'masked_<makes>/pixels' (B, S, S, 3), normalised, what the tower sees: 0 where a token stands.
    """
    made = f"masked_{makes}"

    def run(params, arrays, key, train):
        own, pixels = params[network], to_network(arrays[image], mean, std)
        seen, mask = hidden_patches(pixels, arrays[DRAWS], model.patch_size, hiding)
        found = _parts(made, _encoded(model, own, seen, key, train, hidden=hidden_by(own, mask, hiding)))
        return {**found, f"{made}/chosen": mask, f"{made}/pixels": seen}

    provides = tuple(f"{made}/{name}" for name in ("cls", "mean", "tokens", "chosen", "pixels"))
    return Pass(f"{network}/masked", (network,), (image, DRAWS), provides, run)


def _encoded(model: nn.Module, params: Mapping[str, Any], pixels, key, train, **options) -> jax.Array:
    return model.apply({"params": params[ENCODER]}, pixels, **options, **mode(key, train)).astype(jnp.float32)


def _parts(makes: str, x: jax.Array) -> dict[str, jax.Array]:
    tokens = x[:, 1:]
    return {f"{makes}/cls": x[:, 0], f"{makes}/mean": tokens.mean(axis=1), f"{makes}/tokens": tokens}
