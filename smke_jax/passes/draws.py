"""A random key of each row, whatever device and micro-batch the row is on."""

import jax

DRAWS = "draws"  # the array of the selection of that name: a random number for every row in every step
OF_TEXT, OF_IMAGES, OF_NOISE = range(3)  # what is drawn for a row: the words and the patches that are hidden, and noise


def keys_of(draws: jax.Array, what: int) -> jax.Array:
    """A random key for each row's number.  (B,) -> (B,) keys; `what` is one of the numbers above."""
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.key(number), what))(draws)
