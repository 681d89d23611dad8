"""The only place that calls collectives.  A scope without an axis is one device, so every loss also runs unsharded.

Take gradients *outside* the `shard_map` that these run in: the transpose of a gather is then the exact
reduce-scatter, and the result is the gradient of the single-device loss on the global batch, with no world-size
factor to remember.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("auto", "gather", "ring")


class Scope(NamedTuple):
    """The devices that a loss is spread over, inside `shard_map`, and how it compares rows of different ones.

    axis: name of the mesh axis, or names that count as one; None when the arrays are the whole batch
    impl: 'gather' copies all rows to every device, 'ring' passes them around, 'auto' chooses by size
    key:  for the random numbers of one term in one step, the same on all devices; None where there are none.  Draw for
          the global batch and take `own_rows`: then the numbers do not depend on the count of devices.
    """

    axis: str | tuple[str, ...] | None = None
    impl: str = "auto"
    key: jax.Array | None = None


ALONE = Scope()


def size(scope: Scope) -> int:
    """Number of devices."""
    return 1 if scope.axis is None else jax.lax.axis_size(scope.axis)


def gather(x: jax.Array, scope: Scope) -> jax.Array:
    """Rows of all devices in global order.  (b, …) -> (B, …)."""
    return x if scope.axis is None else jax.lax.all_gather(x, scope.axis, tiled=True)


def mean(x: jax.Array, scope: Scope) -> jax.Array:
    """Mean over devices of a per-device value; all devices must hold equally many examples."""
    return x if scope.axis is None else jax.lax.pmean(x, scope.axis)


def total(x: jax.Array, scope: Scope) -> jax.Array:
    """Sum over devices."""
    return x if scope.axis is None else jax.lax.psum(x, scope.axis)


def pass_on(tree, scope: Scope):
    """Every device's arrays to the next device, the last one's to the first."""
    if scope.axis is None:
        return tree
    devices = size(scope)
    return jax.lax.ppermute(tree, scope.axis, [(i, (i + 1) % devices) for i in range(devices)])


def global_rows(count: int, scope: Scope) -> jax.Array:
    """Positions in the global batch of this device's `count` rows -> (count,) int32."""
    first = 0 if scope.axis is None else jax.lax.axis_index(scope.axis) * count
    return first + jnp.arange(count)


def own_rows(x: jax.Array, scope: Scope) -> jax.Array:
    """This device's part of an array that all devices hold whole.  (B, …) -> (b, …)."""
    if scope.axis is None:
        return x
    count = len(x) // size(scope)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(scope.axis) * count, count)


def as_varying(tree, reference: jax.Array):
    """`tree` marked as different on every device wherever `reference` is: what loops and rules for gradients need."""
    varying = lambda x: jax.typeof(x).mat.varying  # noqa: E731

    def cast(x):
        missing = tuple(varying(reference) - varying(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)
