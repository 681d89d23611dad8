"""A multilayer perceptron as functions of its parameters, for networks and for terms, which know no Linen modules."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from smke_jax.activations import gelu

LECUN = jax.nn.initializers.lecun_normal()  # variance 1 / fan-in


def init_layers(key: jax.Array, sizes: Sequence[int], kernel_init: Callable = LECUN) -> dict[str, Any]:
    """Linear layers from sizes[0] channels to sizes[1], …, at random: {'fc1': {'kernel', 'bias'}, …}."""
    layers = zip(jax.random.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True)
    return {f"fc{i}": {"kernel": kernel_init(k, (a, b)), "bias": jnp.zeros(b)} for i, (k, a, b) in enumerate(layers, 1)}


def through_layers(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """x (…, D) through these layers, with an exact GELU between them -> (…, K), float32; K of the last layer."""
    rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])  # as `models.layers.flat_dot_general`: a cheaper gradient
    for i in range(1, len(params) + 1):
        rows = gelu(rows) if i > 1 else rows
        rows = rows @ params[f"fc{i}"]["kernel"] + params[f"fc{i}"]["bias"]
    return rows.reshape(*x.shape[:-1], -1)
