"""Which two examples are mixed with each other."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import own_rows, size
from smke_jax.selections.base import Selection

NAME = "mixup"


def mixup() -> Selection:
    """'mixup' (B,): for every row of the global batch another row, every row for one other.

    It is drawn anew in every step, and is the same for any number of devices.  A pass that needs 'x@mixup' gets what
    the rows of 'x' are to be mixed with.  FuseMix (Vouitsis et al. 2024, "Data-Efficient Multimodal Fusion on a Single
    GPU") mixes the features of images and of texts, with one coefficient for both.  Needs 'id' (B,).
    """

    def run(state, arrays, scope):
        count = len(arrays["id"]) * size(scope)
        # Each row's partner is the next one in a random order, and so never the row itself.
        order = jax.random.permutation(scope.key, count).astype(jnp.int32)
        partner = jnp.zeros_like(order).at[order].set(jnp.roll(order, -1))
        return {"mixup": own_rows(partner, scope)}

    return Selection(NAME, ("id",), ("mixup",), run)
