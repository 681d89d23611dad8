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
from smke_jax.data.scenes.world import Layout, attribute_labels, sample_layouts

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

    The same arguments give the same scenes. The gallery depends on both numbers: compare runs on equal ones.
    """
    world_rng, claim_rng, draw_rng, word_rng = np.random.default_rng(seed).spawn(4)
    layout = sample_layouts(num_train + num_gallery, world_rng)
    splits = []
    for rows in (slice(num_gallery, None), slice(0, num_gallery)):
        part = layout[rows]
        meanings = choose_meanings(part, claim_rng)
        captions = write_captions(meanings, int(word_rng.integers(2**63)))
        splits.append(Split(draw(part, draw_rng), captions, meanings, part, attribute_labels(part)))
    return Scenes(*splits)
