"""The only place that calls collectives.  `axis` None means one device, so every loss also runs unsharded.

Take gradients *outside* the `shard_map` that these run in: the transpose of a gather is then the exact
reduce-scatter, and the result is the gradient of the single-device loss on the global batch, with no world-size
factor to remember.
"""

import jax
import jax.numpy as jnp


def gather(x: jax.Array, axis: str | None) -> jax.Array:
    """Rows of all devices in global order.  (b, …) -> (B, …)."""
    return x if axis is None else jax.lax.all_gather(x, axis, tiled=True)


def mean(x: jax.Array, axis: str | None) -> jax.Array:
    """Mean over devices of a per-device value; all devices must hold equally many examples."""
    return x if axis is None else jax.lax.pmean(x, axis)


def global_rows(count: int, axis: str | None) -> jax.Array:
    """Positions in the global batch of this device's `count` rows -> (count,) int32."""
    first = 0 if axis is None else jax.lax.axis_index(axis) * count
    return first + jnp.arange(count)
