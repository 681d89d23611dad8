"""Representations of every image of a split, made once by frozen networks."""

from smke_jax.errors import UserError
from smke_jax.evaluators.base import Asset

WHOLE = ("tokens", "patches")  # one vector of every patch: too much to keep of every image


def stored_features(*, of: tuple[str, ...] = ("target/cls",), split: str = "") -> Asset:
    """The representations `of` every image, such as the teacher's [CLS], as the image is evaluated.

    Batches then hold the row of their image, and the network that made it has no part in the step.  The view that it
    sees never changes: set teacher_view='fixed' in the task.
    split: of the task; '' is the one that is trained on
    """
    if large := [name for name in of if name.rpartition("/")[2] in WHOLE]:
        raise UserError(f"stored features keep one vector of every image, and {large[0]} is one of every patch")
    return Asset(tuple(of), split)
