"""A content digest of every array in a tree, computed where the arrays live.

A checkpoint stores these numbers beside the arrays and compares them after reading: the file format
itself does not notice a flipped byte.  The digest depends on the values and their order only, never on
how an array is sharded or over how many devices.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_SMALL = 1 << 16  # elements
_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def tree_digest(tree: Any) -> dict[str, int]:
    """64-bit content digest per leaf, keyed by its path ('block/kernel').

    Leaves are arrays of any shape (0-d and empty too): floats of 8, 16, 32 or 64 bits, integers of 8 to
    64 bits, bool, or typed PRNG keys.  A digest is two independent 32-bit sums mod 2^32 over all elements.
    Changing any one element always changes both; any other change escapes with chance about 2^-64.
    Flattened indices are taken mod 2^32: elements exactly that far apart in one array could trade places
    unseen.  Shape and dtype are not part of the digest; compare them with `leaf_table`.
    """
    return {path: _leaf_digest(_plain(leaf)) for path, leaf in _named_leaves(tree)}


def leaf_table(tree: Any) -> dict[str, str]:
    """Shape and dtype of every leaf by path, e.g. {'block/kernel': 'float32[8,16]'}.

    Leaves may be arrays or `ShapeDtypeStruct`s, so the tables of a state and of its abstract twin agree.
    """
    return {path: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in _named_leaves(tree)}


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _leaf_digest(leaf: jax.Array) -> int:
    # One small program per distinct shape, fetched leaf by leaf: a single program over a thousand leaves
    # takes tens of seconds to compile, and many unfetched collectives at once can starve CPU devices.
    # NumPy takes less time for a small leaf than its program takes to compile.
    small = leaf.is_fully_addressable and leaf.size <= _SMALL
    high, low = _host_digest(np.asarray(leaf)) if small else np.asarray(_digest(leaf))
    return int(high) << 32 | int(low)


def _plain(leaf: Any) -> jax.Array:
    """The leaf as an ordinary array: typed PRNG keys become their uint32 words."""
    leaf = jnp.asarray(leaf)
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
    """(2,) uint32: two sums over the elements of `x`, each a one-to-one function of any single element.

    The first is linear, bits times an odd weight (odd numbers are invertible mod 2^32).  On its own it
    misses an even number of flipped sign bits, 2^31 + 2^31 = 0, so the second mixes before it adds.
    """
    bits, index = _bits(x), _flat_index(x)
    linear = jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)
    mixed = jnp.sum(_mix(bits ^ _mix(index)), dtype=jnp.uint32)
    return jnp.stack([linear, mixed])


def _host_digest(x: np.ndarray) -> tuple[int, int]:
    """The two sums of `_digest`, in NumPy."""
    words = np.ascontiguousarray(x).reshape(-1).view(f"u{min(x.dtype.itemsize, 4)}").astype(np.uint32)
    index = np.arange(words.size, dtype=np.uint32)
    linear = np.sum(words * (2 * index + 1), dtype=np.uint32)
    return linear, np.sum(_mix(words ^ _mix(index)), dtype=np.uint32)


def _bits(x: jax.Array) -> jax.Array:
    """The bit pattern of every element as uint32; 64-bit elements become two along a new last axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    return lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)


def _flat_index(x: jax.Array) -> jax.Array:
    """Row-major index of every word of `_bits(x)`, mod 2^32, written per axis.

    Flattening the array itself would gather a sharded one onto every device; an iota stays sharded.
    """
    shape = x.shape + ((2,) if x.dtype.itemsize == 8 else ())
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return index


def _mix(h: jax.Array) -> jax.Array:
    """A one-to-one scrambling of 32-bit words: the finaliser of MurmurHash3."""
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
