"""What other captions of the query's image in the batch are: the option `same_image` of terms and selections."""

import jax

from smke_jax.errors import UserError

NEGATIVE, MASKED, POSITIVE = SAME_IMAGE = ("negative", "masked", "positive")


def check_same_image(value: str, known: tuple[str, ...] = (NEGATIVE, MASKED)) -> None:
    """Raises UserError for a value of the option `same_image` that is not among those that a part knows."""
    if value not in known:
        raise UserError(f"same_image is {value!r}: known here are {', '.join(known)}")


def masked_ids(ids: jax.Array, same_image: str) -> jax.Array | None:
    """The ids by which a loss leaves negatives out: `ids` (b,) where `same_image` is 'masked', or else None."""
    return ids if same_image == MASKED else None
