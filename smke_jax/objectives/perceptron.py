"""A multilayer perceptron that belongs to a term: a predictor, an expander."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def init_layers(key: jax.Array, sizes: Sequence[int]) -> dict[str, Any]:
    """Linear layers from sizes[0] channels to sizes[1], …, at random: {'fc1': {'kernel', 'bias'}, …}."""
    keys, dense = jax.random.split(key, len(sizes) - 1), jax.nn.initializers.lecun_normal()
    layers = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return {f"fc{i}": {"kernel": dense(k, (a, b)), "bias": jnp.zeros(b)} for i, (k, a, b) in enumerate(layers, 1)}


def through_layers(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """x (…, D) through these layers, with an exact GELU between them -> (…, sizes[-1]), float32."""
    x = x.astype(jnp.float32)
    for i in range(1, len(params) + 1):
        x = jax.nn.gelu(x, approximate=False) if i > 1 else x
        x = x @ params[f"fc{i}"]["kernel"] + params[f"fc{i}"]["bias"]
    return x
