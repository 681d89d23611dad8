"""A random number for each example, from which passes draw what they hide of it."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import own_rows, size
from smke_jax.selections.base import Selection

NAME, SEED = "mask_seeds", "mask_seed"


def mask_seeds() -> Selection:
    """'mask_seed' (B,) int32: for every row of the global batch a random number, drawn anew in every step.

    A pass gets one key for all rows of a micro-batch.  With numbers of the rows' own, masks are the same on any number
    of devices and for micro-batches of any size; see `smke_jax.passes.example_keys`.  Needs 'id' (B,).
    """

    def run(state, arrays, scope):
        count = len(arrays["id"]) * size(scope)
        bits = jax.random.bits(scope.key, (count,), jnp.uint32)
        return {SEED: own_rows(jax.lax.bitcast_convert_type(bits, jnp.int32), scope)}

    return Selection(NAME, ("id",), (SEED,), run)
