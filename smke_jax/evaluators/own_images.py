"""Labelled images for the evaluators of a run that was trained on other data."""

from collections.abc import Mapping

from smke_jax.data.labelled import open_labelled
from smke_jax.data.transforms import squash
from smke_jax.errors import UserError
from smke_jax.tasks.base import Split
from smke_jax.tasks.labelled_images import labelled_split

TEXT = ("text", "text_mask")  # columns of a split that are no images


def own_images(like: Split, *, layout: str, data: str, part: str, held_back: float) -> Split:
    """The split `part` of the labelled images in `data`, in the arrays and sizes of the images of `like`.

    They are squashed to a square, as image-text models see images (spec 0.5).
    layout, held_back: see `smke_jax.data.labelled.open_labelled`
    """
    source = open_labelled(layout, data, part, share=held_back)
    return labelled_split(source, image_sizes_of(like), squash, "squashed")


def image_sizes_of(like: Split) -> Mapping[str, int]:
    """{array: pixels per side} of the images in a split; raises UserError for one without."""
    sizes = {}
    for name, column in like.columns.items():
        shape = column.read([0]).shape if name not in TEXT else ()
        if len(shape) == 4 and shape[-1] == 3:
            sizes[name] = shape[1]
    if not sizes:
        raise UserError(f"{like.name} has no images: choose another split of the run, whose sizes are taken")
    return sizes
