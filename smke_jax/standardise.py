"""Mean 0 and variance 1, without parameters: what passes and terms make of targets."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

EPS = 1e-5  # PyTorch's default of LayerNorm and of instance normalisation


def _over_channels(x: jax.Array) -> jax.Array:
    """The mean over the last axis, which is kept."""
    return x.mean(axis=-1, keepdims=True)


def standardised(x: jax.Array, mean: Callable[[jax.Array], jax.Array] = _over_channels) -> jax.Array:
    """`x` (…, D) with the mean 0 and the variance 1 of what `mean` averages, float32: of each token over its channels.

    By the default mean, it is a LayerNorm without parameters.
    """
    x = x.astype(jnp.float32)
    centred = x - mean(x)
    return centred * jax.lax.rsqrt(mean(jnp.square(centred)) + EPS)
