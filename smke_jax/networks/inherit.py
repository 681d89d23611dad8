"""Which layers of a deeper encoder a student begins with (spec A.1)."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from smke_jax.errors import UserError

# {name: (layers there, layers wanted) -> the numbers of those that are kept, in order}
KEEP: dict[str, Callable[[int, int], range]] = {
    "first": lambda there, wanted: range(wanted),
    # From the first one on, as in TinyCLIP's manual inheritance (microsoft/Cream): 0, 3, 6, 9 of 12.
    "even": lambda there, wanted: range(0, there // wanted * wanted, there // wanted),
    "last": lambda there, wanted: range(there - wanted, there),
}
NUMBERED = re.compile(r"(block|relative_bias)_(\d+)")  # what a layer's parameters are called


def check_keep(keep: str) -> None:
    """Raises UserError for a name that KEEP does not have."""
    if keep not in KEEP:
        raise UserError(f"keep is {keep!r}: give one of {', '.join(KEEP)}")


def kept_layers(params: Mapping[str, Any], keep: str, there: int, wanted: int) -> dict[str, Any]:
    """The parameters of an encoder with `wanted` of its `there` layers, counted anew from 0; all others stay.

    keep: a key of KEEP
    """
    place = {layer: i for i, layer in enumerate(KEEP[keep](there, wanted))}
    kept = {}
    for name, own in params.items():
        numbered = NUMBERED.fullmatch(name)
        if numbered is None:
            kept[name] = own
        elif int(numbered[2]) in place:
            kept[f"{numbered[1]}_{place[int(numbered[2])]}"] = own
    return kept


def said(keep: str, there: int, wanted: int) -> str:
    """'layers 0-5 of 12' or 'layers 0, 3, 6, 9 of 12', for the log of a run."""
    layers = list(KEEP[keep](there, wanted))
    numbers = f"0-{layers[-1]}" if keep == "first" else ", ".join(map(str, layers))
    return f"layers {numbers} of {there}"


def narrower_words(params: Mapping[str, Any], width: int) -> dict[str, Any]:
    """The parameters of a BERT with its table of words (V, D) as a table (V, width) times a matrix (width, D).

    The product is the best approximation of that rank, by the singular values of the table (Eckart and Young 1936).
    """
    table = np.asarray(params["word_embedding"], np.float64)
    directions = np.linalg.eigh(table.T @ table)[1][:, ::-1][:, :width]  # of the largest singular values
    narrow = {"word_embedding": table @ directions, "word_projection": {"kernel": directions.T}}
    return {**params, **jax.tree.map(lambda x: x.astype(np.float32), narrow)}
