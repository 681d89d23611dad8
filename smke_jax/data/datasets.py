"""Where a config's images and captions come from."""

import functools
import hashlib
import math
from collections.abc import Callable, Sequence

from smke_jax.data.mixture import Mixture, open_mixture
from smke_jax.data.pipeline import InMemorySource
from smke_jax.data.scenes import Scenes, make_scenes
from smke_jax.data.sources import ArraySource, Source
from smke_jax.errors import UserError

# {name: (scenes to train on, scenes of the gallery)}.  A few are enough to try code.
SCENES = {"scenes": (20_000, 500), "few_scenes": (2_000, 100)}


class SceneSource(ArraySource):
    """One split of the built-in procedural scenes: 'train' or 'gallery', of a name in SCENES."""

    def __init__(self, split: str, name: str = "scenes"):
        drawn = scenes(name).split(split)
        super().__init__(drawn.images, drawn.captions)
        self.dataset, self.split = name, split
        content = hashlib.sha256(self.images.tobytes())
        content.update("\n".join(caption for captions in self.all_captions() for caption in captions).encode())
        self.digest = content.hexdigest()

    def __repr__(self) -> str:
        return f"SceneSource({self.split}, {self.dataset})"


@functools.cache
def scenes(name: str = "scenes") -> Scenes:
    """The scenes that every run of that source sees; made once per process."""
    return make_scenes(*SCENES[name])


def _prepared(split: str, data: Sequence[str], weights: Sequence[int], caps: Sequence[int]) -> Source:
    if not data:
        raise UserError("data is empty: give the folder that `smke prepare` wrote, or several")
    return open_mixture(data, split, weights=weights or None, caps=caps or None)


def _scenes(name: str) -> Callable[..., Source]:
    def opened(split: str, data: Sequence[str], weights: Sequence[int], caps: Sequence[int]) -> Source:
        if data or weights or caps:
            raise UserError(f"data, weights and caps are for prepared folders: leave them out with source={name!r}")
        return SceneSource(split, name)

    return opened


SOURCES = {"prepared": _prepared} | {name: _scenes(name) for name in SCENES}


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
