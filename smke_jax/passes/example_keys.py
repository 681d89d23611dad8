"""A random key of each example, whatever device and micro-batch the example is on."""

import zlib

import jax

SEED = "mask_seed"  # the array of the selection `mask_seeds`: a random number of every row in every step


def example_keys(seeds: jax.Array, what: str) -> jax.Array:
    """Keys (b,) for what is drawn for each example under the name `what`, from `seeds` (b,) int32.

    Rows of equal seeds get equal keys.  Different names give different keys: the mask of an image does not depend on
    what else is drawn for it.
    """
    own = jax.random.fold_in(jax.random.key(0), zlib.crc32(what.encode()))
    return jax.vmap(lambda seed: jax.random.fold_in(own, seed))(seeds)
