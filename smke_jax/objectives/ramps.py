"""What rises in the first steps of a run, from the step that a term counts among its slots."""

import jax
import jax.numpy as jnp


def ramped(value: float, step: jax.Array, steps: int) -> jax.Array:
    """`value` · step / steps, and `value` from the step `steps` on; `value` throughout where `steps` is 0."""
    return value * jnp.minimum(1.0, step / steps) if steps else jnp.float32(value)
