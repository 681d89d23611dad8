"""The frozen teacher's features of every image, computed once and kept in the run directory."""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.evaluation.embed import divisible, embed_images, make_encoder
from smke_jax.parallel.process import failing_together
from smke_jax.passes.base import Pass, only
from smke_jax.passes.frozen import kept_pass
from smke_jax.training.recipe import Recipe

log = logging.getLogger("smke_jax")

WHOLE = ("target/tokens", "target/patches")  # a vector of every patch: too much to keep of every image


def with_kept_targets(recipe: Recipe) -> Recipe:
    """`recipe` with the teacher's forward replaced by what is kept of it."""
    kept = kept_pass(_teacher(recipe).provides)
    return recipe._replace(passes=tuple(kept if p.name == "teacher" else p for p in recipe.passes))


def _teacher(recipe: Recipe) -> Pass:
    """The teacher's pass, making what the terms read."""
    (teacher,) = (p for p in recipe.passes if p.name == "teacher")
    return only(teacher, recipe.needs)


class KeptTargets:
    """{representation: its value for every image of the training split}, read from disk as it is needed.

    The caller has made sure that the directory belongs to this data and teacher, as a run's record does.
    """

    def __init__(self, recipe: Recipe, frozen: dict[str, Any], source, directory: Path, config, mesh):
        teacher = _teacher(recipe)
        self.provides = teacher.provides
        if large := [name for name in self.provides if name in WHOLE]:
            raise UserError(
                f"config.teacher.cache keeps one feature of every image, and this recipe reads {', '.join(large)}: set "
                "config.teacher.cache=False"
            )
        # Process 0 decides for all: elsewhere a shared folder may show an older state.
        there = np.array([self._path(directory, name).exists() for name in self.provides])
        there = multihost_utils.broadcast_one_to_all(there)
        missing = [name for name, found in zip(self.provides, there, strict=True) if not found]
        if missing:
            log.info("the teacher's features of %s images, once", f"{len(source):,}")
        encode = make_encoder(teacher.run, mesh)
        for name in missing:
            features = embed_images(
                encode, frozen["teacher"], source, name=name, image_size=config.teacher.image_size,
                batch_size=divisible(config.eval.batch_size, mesh), mesh=mesh, threads=config.data.threads,
            )  # fmt: skip
            if jax.process_index() == 0:
                with atomic.replacing(self._path(directory, name)) as path:
                    np.save(path, features)
        if missing and jax.process_count() > 1:
            multihost_utils.sync_global_devices("kept targets")
        with failing_together():
            self._features = {name: self._open(self._path(directory, name), len(source)) for name in self.provides}

    def shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What a batch gets."""
        return {k: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for k, x in self._features.items()}

    def rows(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The features of the images `ids` (b,)."""
        return {name: np.asarray(features[ids]) for name, features in self._features.items()}

    @staticmethod
    def _path(directory: Path, name: str) -> Path:
        return directory / f"{name.replace('/', '-')}.npy"

    @staticmethod
    def _open(path: Path, count: int) -> np.ndarray:
        try:
            features = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): delete it, and it is computed again") from None
        if len(features) != count:
            raise UserError(f"{path} has {len(features)} rows for {count} images: delete it, and it is computed again")
        return features
