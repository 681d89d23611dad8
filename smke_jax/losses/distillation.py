"""Regression of teacher features."""

import jax
import jax.numpy as jnp


def mean_squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over examples and channels, fp32.  (b, D), (b, D) -> ().  Source: spec 8."""
    return jnp.mean(jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)))
