"""Random numbers for the rows of the global batch, from which passes draw their masks."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import global_rows
from smke_jax.selections.base import Selection

NAME = "draws"


def draws() -> Selection:
    """'draws' (B,): a number for every row of the global batch, drawn anew in every step.

    A pass makes the random key of a row of it.  What it draws then depends on the step and on the row's place in the
    global batch, and neither on the number of devices nor on micro-batches.  Needs 'id' (B,), for its length.
    """

    def run(state, arrays, scope):
        def draw(row):
            return jax.random.randint(jax.random.fold_in(scope.key, row), (), 0, jnp.iinfo(jnp.int32).max, jnp.int32)

        return {"draws": jax.vmap(draw)(global_rows(len(arrays["id"]), scope))}

    return Selection(NAME, ("id",), ("draws",), run)
