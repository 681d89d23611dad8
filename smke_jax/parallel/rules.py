"""Which part of the state lies where: rules from the paths of arrays to their layout on the mesh."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from smke_jax.parallel.mesh import DATA_AXES, FSDP_AXIS

FSDP_FROM = 2**16  # elements; smaller arrays are not worth a gather

Rule = tuple[str, Callable[[tuple[int, ...], Mesh], PartitionSpec]]
Spread = Mapping[str, tuple[str, ...]]  # {term: names of its slots whose rows are spread over the devices}


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


# {config.sharding: rules}; the first whose regex is found in the path of an array decides.  Slots have a say of their
# own: their terms name those that are spread.
RULES: dict[str, tuple[Rule, ...]] = {
    "replicated": (("", whole),),
    "fsdp": ((r"^(params|opt_state|averages)/", largest), ("", whole)),
}


def _is_spread(path: str, spread: Spread) -> bool:
    kind, _, rest = path.partition("/")
    term, _, slot = rest.partition("/")
    return kind == "slots" and slot.rpartition("/")[2] in spread.get(term, ())


def undivided(tree: Any, mesh: Mesh, spread: Spread) -> list[str]:
    """One line for each slot of a state that cannot be spread over the devices, as its rows do not divide."""
    lines = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if _is_spread(name, spread) and leaf.ndim > 1 and leaf.shape[0] % mesh.size:
            mib, fitting = leaf.size * leaf.dtype.itemsize / 2**20, -(-leaf.shape[0] // mesh.size) * mesh.size
            lines.append(
                f"{name}: {leaf.shape[0]} rows do not divide over {mesh.size} devices, so each holds all of them "
                f"({mib:.0f} MiB); {fitting} would"
            )
    return lines


def specs(tree: Any, mesh: Mesh, sharding: str = "replicated", spread: Spread | None = None) -> Any:
    """The PartitionSpec of every array or shape of a state, or of a part of one such as {'slots': …}."""

    def spec(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if _is_spread(name, spread or {}):
            return rows(leaf.shape, mesh)
        return next(rule for pattern, rule in RULES[sharding] if re.search(pattern, name))(leaf.shape, mesh)

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(tree: Any, mesh: Mesh, sharding: str = "replicated", spread: Spread | None = None) -> Any:
    """The same as NamedShardings."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree, mesh, sharding, spread))
