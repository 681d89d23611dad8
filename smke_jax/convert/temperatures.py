"""Temperatures in files: here {term: {level: log scale}}; in PyTorch, and in exports of old, a list for each term."""

from collections.abc import Mapping, Sequence

ORDER = ("fc1", "out", "head")
LEVELS = {1: ("out",), 2: ("fc1", "out"), 3: ORDER}  # of a list of so many
SINGLE = {"target_itc": ("head",), "cmli": ("tokens",)}  # of a term whose only level is another one


def by_level(scales: Mapping[str, Mapping[str, float] | Sequence[float]]) -> dict[str, dict[str, float]]:
    """{term: {level: log scale}} of lists, one log scale for each level; what is by level already stays."""
    return {
        term: dict(own if isinstance(own, Mapping) else zip(_levels(term, len(own)), own, strict=True))
        for term, own in scales.items()
    }


def as_lists(scales: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    """{term: log scales in the order of ORDER}: the way back."""
    return {
        term: [own[level] for level in sorted(own, key=lambda level: (*ORDER, level).index(level))]
        for term, own in scales.items()
    }


def _levels(term: str, count: int) -> tuple[str, ...]:
    return SINGLE[term] if count == 1 and term in SINGLE else LEVELS[count]
