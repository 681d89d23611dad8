"""Collectives: the only file that exchanges arrays between devices.

Every function also works in a scope without an axis, which is one device with the whole batch.
Gradients are taken outside of the `shard_map` in which these functions run.  The gradient of a gather is then the exact
reduce-scatter.  The result is the gradient of the loss of the global batch on one device, without a factor for the
number of devices.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("auto", "gather", "ring")
FULL, HALF = "float32", "bfloat16"  # types in which embeddings travel


class Scope(NamedTuple):
    """The devices over which a loss is spread inside `shard_map`, and how it compares rows of different devices.

    axis: name of the mesh axis, or several names that count as one axis; None on one device with the whole batch
    impl: one of IMPLEMENTATIONS: 'gather' copies all rows to every device, 'ring' passes the rows from device to
          device, 'auto' chooses by the number of logits (losses/totals.py)
    key:  for the random numbers of one loss in one step, the same on all devices; None where a loss draws none.  A loss
          draws numbers for the global batch and takes `own_rows` of them, so that they do not depend on the number of
          devices.
    dtype: in which embeddings travel and their gradients return: FULL as they are, HALF rounded to half the bytes, also
          where a row stays on its device.  Which rows travel depends on the form, and with a memory bank on the number
          of devices: there the loss changes with it by this rounding.
    """

    axis: str | tuple[str, ...] | None = None
    impl: str = "auto"
    key: jax.Array | None = None
    dtype: str = FULL


ALONE = Scope()


def size(scope: Scope) -> int:
    """Number of devices."""
    return 1 if scope.axis is None else jax.lax.axis_size(scope.axis)


def gather(x: jax.Array, scope: Scope) -> jax.Array:
    """Rows of all devices in global order, those of float32 in the type `scope.dtype`.  (b, …) -> (B, …)."""
    if scope.axis is None:
        return x
    if scope.dtype == HALF and x.dtype == jnp.float32:
        return _gather_half(x, scope.axis)
    return jax.lax.all_gather(x, scope.axis, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather_half(x: jax.Array, axis) -> jax.Array:
    """`gather` of bfloat16, float32 before and after; its gradient is summed over the devices in bfloat16."""
    return _from_bits(jax.lax.all_gather(_bits(x.astype(jnp.bfloat16)), axis, tiled=True)).astype(jnp.float32)


def _gather_half_backward(axis, _, cotangent):
    return (jax.lax.psum_scatter(cotangent.astype(jnp.bfloat16), axis, tiled=True).astype(jnp.float32),)


_gather_half.defvjp(lambda x, axis: (_gather_half(x, axis), None), _gather_half_backward)


def _bits(x: jax.Array) -> jax.Array:
    """bfloat16 as integers, which no compiler widens on the way: XLA sends bfloat16 as float32 between CPUs."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _from_bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def rounded(x: jax.Array, scope: Scope) -> jax.Array:
    """Embeddings in the type in which they travel: for what travels by `pass_on`."""
    return x.astype(jnp.bfloat16) if scope.dtype == HALF and scope.axis is not None else x


def mean(x: jax.Array, scope: Scope) -> jax.Array:
    """Mean of a value over devices.  A mean over rows here becomes that over all rows: devices hold equally many."""
    return x if scope.axis is None else jax.lax.pmean(x, scope.axis)


def total(x: jax.Array, scope: Scope) -> jax.Array:
    """Sum of a value over devices."""
    return x if scope.axis is None else jax.lax.psum(x, scope.axis)


def pass_on(tree, scope: Scope):
    """The arrays of every device go to the next device, those of the last device to the first."""
    if scope.axis is None:
        return tree
    devices = size(scope)
    to_the_next = [(i, (i + 1) % devices) for i in range(devices)]
    return jax.tree.map(_from_bits, jax.lax.ppermute(jax.tree.map(_bits, tree), scope.axis, to_the_next))


def global_rows(count: int, scope: Scope) -> jax.Array:
    """Positions of this device's `count` rows in the global batch -> (count,) int32."""
    first = 0 if scope.axis is None else jax.lax.axis_index(scope.axis) * count
    return first + jnp.arange(count)


def own_rows(x: jax.Array, scope: Scope) -> jax.Array:
    """This device's rows of an array of all rows, which every device holds.  (B, …) -> (b, …)."""
    if scope.axis is None:
        return x
    count = len(x) // size(scope)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(scope.axis) * count, count)


def take_rows(table: jax.Array, rows: jax.Array, scope: Scope) -> jax.Array:
    """Rows of a table whose rows are spread over the devices in equal parts.

    table (n / devices, …): the part here; rows (b,): positions in the whole table (n, …) -> (b, …).
    """
    if scope.axis is None:
        return table[rows]
    here = gather(rows, scope) - jax.lax.axis_index(scope.axis) * len(table)
    mine = (here >= 0) & (here < len(table))
    found = table[jnp.where(mine, here, 0)]
    found = jnp.where(mine.reshape(-1, *[1] * (table.ndim - 1)), found, jnp.zeros((), table.dtype))
    return own_rows(total(found, scope), scope)


def to_their_devices(x: jax.Array, scope: Scope) -> jax.Array:
    """What every device has computed for the rows of all devices, brought to the devices of the rows.

    x (B, …), different on every device -> (devices, b, …): for the rows here, what each device has computed.
    """
    if scope.axis is None:
        return x[None]
    parts = x.reshape(size(scope), -1, *x.shape[1:])
    return jax.lax.all_to_all(parts, scope.axis, split_axis=0, concat_axis=0, tiled=True)


def rows_of_columns(x: jax.Array, scope: Scope) -> jax.Array:
    """Columns of a matrix (B, B) that is spread by columns -> rows of the same matrix.  (B, b) -> (b, B)."""
    return x if scope.axis is None else jax.lax.all_to_all(x, scope.axis, split_axis=0, concat_axis=1, tiled=True)


def as_varying(tree, reference: jax.Array):
    """`tree`, marked as varying over all mesh axes over which `reference` varies; the values stay the same.

    The arrays of a loop inside `shard_map`, and those of a custom gradient rule, need equal marks.
    """
    varying = lambda x: jax.typeof(x).mat.varying  # noqa: E731

    def cast(x):
        missing = tuple(varying(reference) - varying(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)
