"""Parameters that are not trained: what the step runs with besides its state."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from smke_jax.networks.base import Start
from smke_jax.networks.start import started
from smke_jax.parallel.mesh import made_on_host, replicated
from smke_jax.passes.base import Pass
from smke_jax.training.recipe import Recipe, Shapes, init_network, split_params


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
        if network.trained is False and name in starts:
            frozen[name] = jax.device_put(starts[name].params, replicated(mesh))
        else:
            fresh = made_on_host(lambda n=name, k=key: init_network(recipe, n, k, shapes.arrays), replicated(mesh))
            frozen[name] = split_params(network, started(fresh, starts.get(name)))[1]
    return frozen


def frozen_shapes(recipe: Recipe, shapes: Shapes, rows: int = 0) -> dict[str, Any]:
    """The same for the networks of a step, as shapes, and 'assets' where selections search them.

    rows: of each of these assets
    """
    names = networks_of(recipe, recipe.forward)
    read = {name.partition("/")[2] for item in recipe.forward for name in item.reads if name.startswith("assets/")}
    number = jax.ShapeDtypeStruct((rows,), jnp.int32)
    corpora = {
        name: {"id": number}
        | {what: jax.ShapeDtypeStruct((rows, *shapes.arrays[what].shape[1:]), asset.dtype) for what in asset.provides}
        for name, asset in recipe.assets.items()
        if name in read
    }
    networks = {
        name: split_params(recipe.networks[name], shapes.networks[name])[1]
        for name in sorted(names)
        if recipe.networks[name].trained is not True
    }
    return {**networks, "assets": corpora} if corpora else networks
