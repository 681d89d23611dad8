"""Figures of a run, beside its checkpoints: evals/STEP/EVALUATOR.json, and .npz where there are arrays."""

import json
from pathlib import Path

import numpy as np

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.evaluators.base import Figures


def write_figures(path: Path, figures: Figures) -> list[Path]:
    """Writes PATH.json, and PATH.npz where there are arrays, each whole or not at all; returns what was written."""
    written = []
    try:
        if figures.arrays:
            with atomic.replacing(path.with_name(f"{path.name}.npz")) as neighbour:
                np.savez_compressed(neighbour, **figures.arrays)
            written.append(path.with_name(f"{path.name}.npz"))
        text = json.dumps(figures.record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        written.append(atomic.write_text(path.with_name(f"{path.name}.json"), text))
    except OSError as error:
        raise UserError(f"cannot write {path}.json: {error.strerror}") from None
    return written


def copy_figures(path: Path, out: Path) -> Path:
    """Writes the record in `path` to `out` as well; UserError where that cannot be."""
    try:
        return atomic.write_bytes(out, path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; the figures stand in {path}") from None
