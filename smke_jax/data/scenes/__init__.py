"""A small world drawn by program: 32x32 scenes of two or three objects, with five true captions each.

It stands in for a photo collection where none may be downloaded: exact ground truth, no duplicates, and a
known ceiling on retrieval. `make_scenes` is the way in.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from smke_jax.data.scenes.captions import VOCABULARY, write_captions
from smke_jax.data.scenes.drawing import draw
from smke_jax.data.scenes.meaning import TEMPLATES, Meanings, choose_meanings
from smke_jax.data.scenes.oracle import ceiling, truth
from smke_jax.data.scenes.probe import attribute_probe
from smke_jax.data.scenes.world import Layout, attribute_labels, canonical_keys, sample_layouts
from smke_jax.errors import UserError

__all__ = ["SPLITS", "TEMPLATES", "VOCABULARY", "Scenes", "Split", "attribute_probe", "ceiling", "make_scenes", "truth"]

SPLITS = ("train", "gallery")


@dataclasses.dataclass(frozen=True)
class Split:
    """N scenes. Use `ceiling(split.meanings, split.layout)` for the limit that their captions set.

    images: (N, 32, 32, 3) uint8; captions: N tuples of five strings, in the order of TEMPLATES; meanings:
    what the captions claim; layout: what is in the scenes; attributes: name -> (N, K) bool, see
    `attribute_labels`.
    """

    images: np.ndarray
    captions: list[tuple[str, ...]]
    meanings: Meanings
    layout: Layout
    attributes: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass(frozen=True)
class Scenes:
    """A training set, which is drawn when it is first asked for, and a gallery; they share no scene."""

    gallery: Split
    draw_train: Callable[[], Split]

    @functools.cached_property
    def train(self) -> Split:
        return self.draw_train()

    def split(self, name: str) -> Split:
        """The split of that name.  Raises `UserError` for one that scenes do not have."""
        if name not in SPLITS:
            raise UserError(f"the scenes have no split {name!r}: they have {', '.join(SPLITS)}")
        return getattr(self, name)


def make_scenes(num_train: int = 20_000, num_gallery: int = 500, seed: int = 0) -> Scenes:
    """Scenes with captions, no description occurring twice within or across the two splits.

    The same arguments give the same scenes, and the gallery depends on `num_gallery` and `seed` alone, so
    that runs on training sets of different sizes can be compared on it.
    """
    gallery_rng, train_rng = np.random.default_rng(seed).spawn(2)
    layout_rng, *others = gallery_rng.spawn(4)
    gallery = _tell(sample_layouts(num_gallery, layout_rng), *others)

    def draw_train() -> Split:
        layout_rng, *others = train_rng.spawn(4)
        return _tell(sample_layouts(num_train, layout_rng, avoid=canonical_keys(gallery.layout)), *others)

    return Scenes(gallery, draw_train)


def _tell(layout: Layout, claim_rng, word_rng, draw_rng) -> Split:
    """Captions and images of given scenes."""
    meanings = choose_meanings(layout, claim_rng)
    captions = write_captions(meanings, int(word_rng.integers(2**63)))
    return Split(draw(layout, draw_rng), captions, meanings, layout, attribute_labels(layout))
