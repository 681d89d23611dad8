"""Nested dicts of arrays by the paths of their leaves, without Flax, which takes longer to import than a text takes."""

from collections.abc import Iterator, Mapping
from typing import Any


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{'a': {'b': x}} -> {'a/b': x}; a dict without leaves has none."""
    return dict(_leaves(tree, ""))


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The way back of `flat`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *above, name = path.split("/")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        place[name] = leaf
    return tree


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, x in tree.items():
        if isinstance(x, Mapping):
            yield from _leaves(x, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", x
