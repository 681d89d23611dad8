"""A small world drawn by program: 32x32 scenes of two or three objects, with five true captions each.

It stands in for a photo collection where none may be downloaded: exact ground truth, no duplicates, and a
known ceiling on retrieval. `make_scenes` is the way in.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from smke_jax.data.scenes.captions import VOCABULARY, write_captions
from smke_jax.data.scenes.drawing import draw
from smke_jax.data.scenes.meaning import TEMPLATES, Meanings, choose_meanings
from smke_jax.data.scenes.oracle import ceiling, truth
from smke_jax.data.scenes.probe import attribute_probe
from smke_jax.data.scenes.world import Layout, attribute_labels, canonical_keys, sample_layouts

__all__ = ["TEMPLATES", "VOCABULARY", "Scenes", "Split", "attribute_probe", "ceiling", "make_scenes", "truth"]


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
    """A training set and a gallery that share no scene."""

    train: Split
    gallery: Split


def make_scenes(num_train: int = 20_000, num_gallery: int = 500, seed: int = 0) -> Scenes:
    """Scenes with captions, no description occurring twice within or across the two splits.

    The same arguments give the same scenes, and the gallery depends on `num_gallery` and `seed` alone, so
    that runs on training sets of different sizes can be compared on it.
    """
    gallery_rng, train_rng = np.random.default_rng(seed).spawn(2)
    layout_rng, *others = gallery_rng.spawn(4)
    gallery = _tell(sample_layouts(num_gallery, layout_rng), *others)
    layout_rng, *others = train_rng.spawn(4)
    train = sample_layouts(num_train, layout_rng, avoid=canonical_keys(gallery.layout))
    return Scenes(_tell(train, *others), gallery)


def _tell(layout: Layout, claim_rng, word_rng, draw_rng) -> Split:
    """Captions and images of given scenes."""
    meanings = choose_meanings(layout, claim_rng)
    captions = write_captions(meanings, int(word_rng.integers(2**63)))
    return Split(draw(layout, draw_rng), captions, meanings, layout, attribute_labels(layout))
