"""Reading `metrics.jsonl`, including that of a run that was killed in the middle of a line or resumed."""

import math
from pathlib import Path

import numpy as np

from smke_jax.errors import UserError
from smke_jax.json_text import parse_json


class MetricsLog(list):
    """The rows of a metrics file, oldest first; `unreadable` counts the lines that were left out."""

    unreadable = 0


def read_metrics(path) -> MetricsLog:
    """The lines of `path` as dictionaries; broken lines are counted, not fatal.

    A killed run leaves half a line at the end, and a resumed one appends to it, so the broken line may also
    lie in the middle. Raises UserError when the file is missing or holds no readable line at all.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such metrics file; give the folder of a run that has logged something")
    log = MetricsLog()
    # errors="replace": a line cut inside a character is one broken line, not an unreadable file.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and not any(isinstance(value, list | dict) for value in row.values()):
            log.append(row)
        else:
            log.unreadable += 1
    if log.unreadable and not log:
        raise UserError(f"{path}: none of its {log.unreadable} lines is a JSON object; give a metrics.jsonl")
    return log


def keys_of(rows, wanted) -> list[str]:
    """The keys of all rows, sorted, for which `wanted(key)` holds and some value can be drawn."""
    found = {key for row in rows for key in row if wanted(key)}
    return sorted(key for key in found if series(rows, key)[0])


def series(rows, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of `key`, in the order of the steps; values that are not finite numbers are left out.

    A run resumed from a checkpoint logs some steps twice: the later line counts, it is what training kept.
    """
    points = {row["step"]: row[key] for row in rows if _is_finite(row.get("step")) and _is_finite(row.get(key))}
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def training_seconds(rows, batch_size: int) -> np.ndarray:
    """(n,) what the steps up to each logged examples_per_second took, since the one before it."""
    steps, rates = series(rows, "examples_per_second")
    return np.diff([0, *steps]) * batch_size / np.asarray(rates)


def count_not_finite(rows, key: str) -> int:
    """How many rows hold NaN or infinity under `key`."""
    return sum(isinstance(row.get(key), float) and not math.isfinite(row[key]) for row in rows)


def _is_finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
