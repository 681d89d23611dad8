"""What the step runs with besides its state: parameters that are not trained, and assets."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.evaluators.base import Asset, Encode
from smke_jax.networks.base import Start
from smke_jax.networks.start import started
from smke_jax.parallel.mesh import replicated
from smke_jax.parallel.process import failing_together
from smke_jax.passes.base import Pass
from smke_jax.tasks.base import Task
from smke_jax.training.recipe import Recipe, Shapes, init_network, split_params

log = logging.getLogger("smke_jax")


def frozen_key(seed: int) -> jax.Array:
    """The key that frozen networks of random weights begin with."""
    return jax.random.key(seed + 1)


def networks_of(recipe: Recipe, passes: Iterable[Pass]) -> set[str]:
    """The networks whose parameters `passes` need, an average standing for the network that it follows."""
    found = {name for p in passes if isinstance(p, Pass) for name in p.networks}
    averages = {name: recipe.networks[name].average for name in found}
    return {averages[name].of if averages[name] else name for name in found}


def load_frozen(
    recipe: Recipe, shapes: Shapes, starts: Mapping[str, Start], mesh, *, seed: int, names: Iterable[str]
) -> dict[str, Any]:
    """{network: its parameters that are not trained} of the networks `names`, on every device of the mesh."""
    frozen = {}
    for name in names:
        network = recipe.networks[name]
        if network.trained is True:
            continue
        key = frozen_key(seed) if network.trained is False else jax.random.key(seed)
        init = jax.jit(lambda n=name, k=key: init_network(recipe, n, k, shapes.arrays), out_shardings=replicated(mesh))
        if network.trained is False and name in starts:
            frozen[name] = jax.device_put(starts[name].params, replicated(mesh))
        else:
            frozen[name] = split_params(network, started(init(), starts.get(name)))[1]
    return frozen


def frozen_shapes(recipe: Recipe, shapes: Shapes) -> dict[str, Any]:
    """The same for the networks of a step, as shapes."""
    names = networks_of(recipe, recipe.forward)
    return {
        name: split_params(recipe.networks[name], shapes.networks[name])[1]
        for name in sorted(names)
        if recipe.networks[name].trained is not True
    }


class StoredAsset:
    """An asset on disk, made where it is not there yet, and read row by row as it is needed.

    directory: a folder of the run, whose record holds the digests of the data and of the weights
    """

    def __init__(self, name: str, asset: Asset, encode: Encode, task: Task, directory: Path):
        self.asset = asset
        split = task.split(asset.split or task.train)
        paths = {what: directory / name / f"{what.replace('/', '-')}.npy" for what in asset.provides}
        # Process 0 decides for all: elsewhere a shared folder may show an older state.
        there = multihost_utils.broadcast_one_to_all(np.array([path.exists() for path in paths.values()]))
        missing = [what for what, found in zip(paths, there, strict=True) if not found]
        if missing:
            log.info("the asset %s: %s of %s, once", name, ", ".join(missing), split.name)
        for what in missing:
            made = encode((what,), split)[what]
            if jax.process_index() == 0:
                with atomic.replacing(paths[what]) as path, open(path, "wb") as file:
                    np.save(file, made)
        if missing and jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"asset {name}")
        count = task.facts["num_images"] if asset.by_id else None
        with failing_together():
            self.arrays = {what: _open(path, count) for what, path in paths.items()}

    def rows(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of the images `ids` (b,)."""
        return {what: np.asarray(array[ids]) for what, array in self.arrays.items()}


def _open(path: Path, count: int | None) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and it is computed again") from None
    if count is not None and len(array) != count:
        raise UserError(f"{path} has {len(array)} rows for {count} images: delete it, and it is computed again")
    return array
