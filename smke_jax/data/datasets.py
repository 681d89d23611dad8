"""Where a config's images and captions come from."""

import functools
import hashlib

from smke_jax.data.pipeline import InMemorySource
from smke_jax.data.scenes import make_scenes
from smke_jax.data.sources import ArraySource, open_prepared
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


def _prepared(data, split):
    if not data.dir:
        raise UserError("config.data.dir is empty: give the folder that `smke prepare` wrote")
    return open_prepared(data.dir, split)


def _scenes(data, split):
    return SceneSource(split)


SOURCES = {"prepared": _prepared, "scenes": _scenes}


def open_source(data, split: str):
    """The split of the dataset that `data` (config.data) names; kept in memory where `data.in_memory` says so."""
    if data.source not in SOURCES:
        raise UserError(f"unknown config.data.source {data.source!r}: known are {', '.join(SOURCES)}")
    source = SOURCES[data.source](data, split)
    return InMemorySource(source) if data.in_memory else source
