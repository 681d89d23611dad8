"""Which part of the state lies where: rules from the paths of arrays to their layout on the mesh."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from smke_jax.parallel.mesh import DATA_AXES, FSDP_AXIS

FSDP_FROM = 2**16  # elements; smaller arrays are not worth a gather

Rule = tuple[str, Callable[[tuple[int, ...], Mesh], PartitionSpec]]


def whole(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """A copy on every device."""
    return PartitionSpec()


def rows(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The first dimension over all devices; whole where it does not divide."""
    return PartitionSpec(DATA_AXES) if shape[0] % mesh.size == 0 else PartitionSpec()


def largest(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The largest dimension that divides over 'fsdp'; whole where none does, or where the array is small."""
    parts = mesh.shape[FSDP_AXIS]
    fitting = [i for i, length in enumerate(shape) if length % parts == 0]
    if not fitting or math.prod(shape) < FSDP_FROM:
        return PartitionSpec()
    split = max(fitting, key=lambda i: shape[i])
    return PartitionSpec(*(FSDP_AXIS if i == split else None for i in range(len(shape))))


# Memory banks: no device needs more than its part, as queries travel to it.
BANKS: Rule = (r"^slots/.*\b(features|ids)$", rows)

# {config.sharding: rules}; the first whose regex is found in the path of an array decides.
RULES: dict[str, tuple[Rule, ...]] = {
    "replicated": (BANKS, ("", whole)),
    "fsdp": (BANKS, (r"^(params|opt_state)/", largest), ("", whole)),
}


def specs(tree: Any, mesh: Mesh, sharding: str = "replicated") -> Any:
    """The PartitionSpec of every array or shape of a state, or of a part of one such as {'slots': …}."""

    def spec(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return next(rule for pattern, rule in RULES[sharding] if re.search(pattern, name))(leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(tree: Any, mesh: Mesh, sharding: str = "replicated") -> Any:
    """The same as NamedShardings."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree, mesh, sharding))
