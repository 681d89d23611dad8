"""Labelled images for the evaluators of a run that was trained on other data."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from smke_jax.data.damage import DamagedImage
from smke_jax.data.labelled import LabelledSource
from smke_jax.data.pipeline import pixels
from smke_jax.data.transforms import squash
from smke_jax.errors import UserError
from smke_jax.evaluators.base import Encode
from smke_jax.evaluators.top_k import finite_rows
from smke_jax.parallel.process import gather_rows
from smke_jax.tasks.base import Split
from smke_jax.tasks.labelled_images import labelled_split

TEXT = ("text", "text_mask")  # columns of a split that are no images


@dataclasses.dataclass(frozen=True)
class OwnImages:
    """The images of `source` as image-text models see them (spec 0.5): squashed to squares of `sizes`, by array.

    What cannot be read is found out while it is embedded, left out and counted.
    """

    source: LabelledSource
    sizes: Mapping[str, int]

    def encoded(self, encode: Encode, name: str) -> tuple[np.ndarray, Split]:
        """(representations `name` (n, D), split of the n images that can be read, with how many were 'skipped').

        Raises UserError where no image can be read.
        """
        unread: dict[int, str] = {}

        def read(row: int) -> np.ndarray:
            try:
                return pixels(self.source[row])
            except DamagedImage as error:
                unread[row] = error.reason
                return np.zeros((8, 8, 3), np.uint8)  # stands in until its row is left out

        split = labelled_split(self.source, self.sizes, squash, "squashed", read)
        rows = encode((name,), split)[name]
        # Each process reads its own share of the images.
        damaged = gather_rows(np.isin(np.arange(len(self.source)), list(unread))[None]).any(axis=0)
        split = without_rows(split, self.source, np.flatnonzero(damaged))
        return finite_rows(rows[~damaged], name), split


def without_rows(split: Split, source: LabelledSource, damaged: np.ndarray) -> Split:
    """`split` of `source` with the facts of all rows but `damaged`, which are counted as 'skipped' and warned about."""
    if not len(damaged):
        return split
    source.tell_unread(len(damaged), len(source), repr(source.names[damaged[0]]))
    kept = np.setdiff1d(np.arange(len(source)), damaged)
    facts = {"labels": source.labels[kept], "pixels": lambda row: source.whole(int(kept[row])), "skipped": len(damaged)}
    return split._replace(facts={**split.facts, **facts})


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
