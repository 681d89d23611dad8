"""Where a config's images and captions come from."""

import functools
import hashlib
import math
from collections.abc import Sequence

from smke_jax.data.mixture import Mixture, open_mixture
from smke_jax.data.pipeline import InMemorySource
from smke_jax.data.scenes import make_scenes
from smke_jax.data.sources import ArraySource, Source
from smke_jax.errors import UserError

NUM_SCENES, NUM_GALLERY = 20_000, 500


class SceneSource(ArraySource):
    """One split of the built-in procedural scenes: 'train' or 'gallery'."""

    dataset = "scenes"

    def __init__(self, split: str):
        splits = vars(scenes())
        if split not in splits:
            raise UserError(f"the scenes have no split {split!r}: they have {', '.join(splits)}")
        super().__init__(splits[split].images, splits[split].captions)
        self.split = split
        content = hashlib.sha256(self.images.tobytes())
        content.update("\n".join(caption for captions in self.all_captions() for caption in captions).encode())
        self.digest = content.hexdigest()

    def __repr__(self) -> str:
        return f"SceneSource({self.split})"


@functools.cache
def scenes():
    """The scenes that every run sees; made once per process."""
    return make_scenes(NUM_SCENES, NUM_GALLERY)


def _prepared(split: str, data: Sequence[str], weights: Sequence[int], caps: Sequence[int]) -> Source:
    if not data:
        raise UserError("data is empty: give the folder that `smke prepare` wrote, or several")
    return open_mixture(data, split, weights=weights or None, caps=caps or None)


def _scenes(split: str, data: Sequence[str], weights: Sequence[int], caps: Sequence[int]) -> Source:
    if data or weights or caps:
        raise UserError("data, weights and caps are for prepared folders: leave them out with source='scenes'")
    return SceneSource(split)


SOURCES = {"prepared": _prepared, "scenes": _scenes}


def open_source(
    source: str,
    split: str,
    *,
    data: Sequence[str] = (),
    weights: Sequence[int] = (),
    caps: Sequence[int] = (),
    in_memory: bool = False,
    fraction: float = 1.0,
) -> Source:
    """A split of the data set that `source`, a key of SOURCES, makes of the folders `data`.

    weights, caps: see `Mixture`; () is once, and all.  in_memory: every image is decoded once and kept.
    fraction: of all of its images, rounded up, the first by `name_order`: of two fractions the smaller one's images are
              among those of the larger one.  UserError unless it is above 0 and at most 1
    """
    if not 0 < fraction <= 1:
        raise UserError(f"data_fraction is {fraction}: give a share above 0 and at most 1")
    opened = SOURCES[source](split, data, weights, caps)
    if fraction < 1:
        opened = Mixture([opened], split, [1], [math.ceil(fraction * len(opened) - 1e-9)])
    return InMemorySource(opened) if in_memory else opened
