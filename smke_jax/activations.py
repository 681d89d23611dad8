"""Activations of networks, and of the layers that belong to terms."""

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x · Φ(x) by the error function, computed in float32; the backward pass keeps x alone.

    `jax.nn.gelu` takes erfc, which keeps the last digits of values near 0 far out on the negative side, as PyTorch does
    not, and takes five times as long on a CPU.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _normal_cdf(x):
    return 0.5 * (1 + jax.lax.erf(x * np.float32(np.sqrt(0.5))))


def _gelu_backward(x, cotangent):
    wide = x.astype(jnp.float32)
    slope = _normal_cdf(wide) + wide * np.float32(1 / np.sqrt(2 * np.pi)) * jnp.exp(-0.5 * wide * wide)
    return ((cotangent.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIP's
    "relu": jax.nn.relu,
}
