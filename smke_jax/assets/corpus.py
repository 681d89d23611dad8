"""The embeddings of all captions or of all images, made once by frozen networks (spec A.3)."""

from smke_jax.assets.features import check_vectors
from smke_jax.evaluators.base import Asset


def corpus(*, of: str = "teacher_text/out", folder: str = "", half: bool = True) -> Asset:
    """The representation `of` every caption, or every image, of the split that is trained on, each of length 1.

    Selections search it as a whole, its rows spread over the devices.  A row of a batch gets its own caption's or
    image's, so that the networks that make it have no part in the step.  It never changes: they are frozen.
    folder: where to keep it, so that other runs find it; '' keeps it in the run's own folder
    half:   keep it in float16, in half the room, on disk and on the devices
    """
    check_vectors((of,))
    return Asset((of,), whole=True, normalised=True, folder=folder, dtype="float16" if half else "float32")
