"""Several prepared folders read as one source, such as COCO with Conceptual Captions."""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smke_jax.data.name_order import name_order
from smke_jax.data.sources import Example, Source, open_prepared
from smke_jax.errors import UserError


class Mixture(Source):
    """The images of several sources, one source after the other, numbered through from 0 to N - 1.

    Args:
      sources: at least one.
      split: name of the split that all of them are.
      weights: how often the rows of each source come in an epoch, at least 1.
      caps: the most images that are taken of each source; 0 takes all. Those taken are the first by `name_order`, so
        that a smaller cap takes some of the images of a larger one. They stay in the order of their source.

    Attributes:
      dataset: the names of the sources, such as 'coco+cc3m'.
      digest: hex sha256 of the sources' digests in order, each with its cap and weight.
      image_ids: int64 (N,), the sources' own; two sources can use the same id.
    """

    def __init__(self, sources: Sequence[Source], split: str, weights: Sequence[int], caps: Sequence[int]):
        self.sources, self.split, self.weights = tuple(sources), split, tuple(weights)
        # A cap that leaves nothing out is none: it makes the same mixture.
        self.caps = tuple(cap if cap < len(source) else 0 for source, cap in zip(self.sources, caps, strict=True))
        self._taken = [
            np.sort(name_order(source.names)[:cap]) if cap else np.arange(len(source))
            for source, cap in zip(self.sources, self.caps)
        ]
        self._ends = np.cumsum([len(taken) for taken in self._taken])
        self.dataset = "+".join(source.dataset for source in self.sources)
        self.about = " and ".join(dict.fromkeys(source.about for source in self.sources if source.about))
        parts = [[source.digest, *numbers] for source, *numbers in zip(self.sources, self.caps, self.weights)]
        self.digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.num_captions = self._joined([source.num_captions for source in self.sources])
        self.image_ids = self._joined([source.image_ids for source in self.sources])
        self.repeats = self._joined([source.repeats * np.int32(w) for source, w in zip(self.sources, self.weights)])

    @functools.cached_property
    def names(self) -> list[str]:
        return [source.names[i] for source, taken in zip(self.sources, self._taken) for i in taken.tolist()]

    def counts(self) -> list[dict[str, int | str]]:
        found = []
        for source, taken, weight in zip(self.sources, self._taken, self.weights):
            captions = int(np.sum(source.num_captions[taken]))
            found += [{**own, "images": len(taken), "captions": captions, "weight": weight} for own in source.counts()]
        return found

    def __getitem__(self, index: int) -> Example:
        source, own = self._find(index)
        return source[own]

    def captions(self, index: int) -> tuple[str, ...]:
        source, own = self._find(index)
        return source.captions(own)

    def all_captions(self) -> list[tuple[str, ...]]:
        found = []
        for source, taken in zip(self.sources, self._taken):
            captions = source.all_captions()
            found += [captions[i] for i in taken.tolist()]
        return found

    def _joined(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([array[taken] for array, taken in zip(arrays, self._taken)])

    def _find(self, index: int) -> tuple[Source, int]:
        """The source of image `index`, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r} has {len(self)} images, no number {index}")
        which = int(np.searchsorted(self._ends, index, side="right"))
        taken = self._taken[which]
        return self.sources[which], int(taken[index - self._ends[which] + len(taken)])

    def __reduce__(self):
        return Mixture, (self.sources, self.split, self.weights, self.caps)

    def __repr__(self) -> str:
        # Without the folders' paths, as that of a single source.
        return f"Mixture({self.dataset}, {self.split}, {self.digest[:16]})"


def open_mixture(
    directories: Sequence[str | Path],
    split: str,
    *,
    weights: Sequence[int] | None = None,
    caps: Sequence[int | None] | None = None,
) -> Source:
    """Opens one split of several prepared folders as one source.

    Args:
      directories: the folders, at least one. A single folder with weight 1 and without a cap is opened as it is.
      split: every folder must have it.
      weights: one whole number of at least 1 for each folder: how often its rows come in an epoch; 1 where not given.
      caps: one number for each folder: the most images taken of it, see `Mixture`; 0 or None takes all.

    Raises:
      UserError: a folder is missing, lacks the split or is given twice, or a weight or a cap is no such number.
    """
    directories = [Path(directory) for directory in directories]
    if not directories:
        raise UserError("no folder of prepared data is given: name at least one that `smke prepare` wrote")
    weights = _numbers("weight", weights, directories, least=1)
    caps = _numbers("cap", caps, directories, least=0)
    _refuse_repeats(directories, [directory.resolve() for directory in directories])
    sources = [open_prepared(directory, split) for directory in directories]
    _refuse_repeats(directories, [source.digest for source in sources])
    if weights == [1] and not 0 < caps[0] < len(sources[0]):
        return sources[0]
    return Mixture(sources, split, weights, caps)


def _numbers(name: str, values: Sequence[int | None] | None, directories: list[Path], *, least: int) -> list[int]:
    """One number for each folder; `least` where none is given."""
    values = [least] * len(directories) if values is None else [least if x is None else x for x in values]
    if len(values) != len(directories):
        raise UserError(f"{len(values)} {name}s for {len(directories)} folders: give one {name} for each folder")
    for value, directory in zip(values, directories):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise UserError(f"the {name} of {directory} is {value!r}: give a whole number of at least {least}")
    return [int(value) for value in values]


def _refuse_repeats(directories: list[Path], contents: list) -> None:
    """Refuses folders of equal `contents`: their images would be each other's negatives."""
    first = {}
    for directory, content in zip(directories, contents):
        other = first.setdefault(content, directory)
        if other is not directory:
            raise UserError(
                f"{other} and {directory} are the same data: give it once, with a weight where it is to come more often"
            )
