"""Representations of every image, made once by frozen networks."""

from smke_jax.errors import UserError
from smke_jax.evaluators.base import Asset

WHOLE = ("tokens", "patches")  # one vector of every patch: too much to keep of every image


def stored_features(
    *,
    of: tuple[str, ...] = ("target/cls",),
    augmentations: int = 0,
    evaluated: tuple[str, ...] = (),
    folder: str = "",
    half: bool = False,
) -> Asset:
    """The representations `of` every image that is trained on, such as the teacher's [CLS].

    Batches then hold the row of their image, and the network that made it has no part in the step.
    augmentations: so many random views of every image are kept, as the task draws views, and a row of a batch gets one
                of them at random.  0 keeps the image as it is evaluated; the task must then show it so in every epoch,
                with teacher_view='fixed'
    evaluated:  further splits whose images are kept as they are evaluated, such as ('dev',): evaluations then need no
                forward of the network either
    folder:     where to keep it, so that other runs find it; '' keeps it in the run's own folder
    half:       keep it in float16, in half the room
    """
    check_vectors(of)
    dtype = "float16" if half else "float32"
    return Asset(tuple(of), views=augmentations, evaluated=tuple(evaluated), folder=folder, dtype=dtype)


def check_vectors(names: tuple[str, ...]) -> None:
    """Raises UserError for a representation that is not one vector of an image or a caption."""
    if large := [name for name in names if name.rpartition("/")[2] in WHOLE]:
        raise UserError(f"stored features keep one vector of every image, and {large[0]} is one of every patch")
