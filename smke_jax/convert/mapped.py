"""Tensors of a safetensors file as views of the mapped file: what is not used is not read."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from smke_jax.errors import UserError
from smke_jax.json_text import parse_json

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
    "BOOL": "?",
}  # fmt: skip
METADATA = "__metadata__"


def mapped_tensors(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of those whose type NumPy knows, in a file whose header safetensors has checked."""
    content = np.memmap(path, np.uint8, "r").view(np.ndarray)
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    return {
        name: _tensor(content[start:], x)
        for name, x in parse_json(content[8:start].tobytes()).items()
        if name != METADATA and x["dtype"] in DTYPES
    }


def _tensor(content: np.ndarray, entry: dict) -> np.ndarray:
    first, last = entry["data_offsets"]
    return np.frombuffer(content[first:last], DTYPES[entry["dtype"]]).reshape(entry["shape"])


def watch(path: Path) -> Callable[[], None]:
    """A function that raises UserError where the file was written to since: what is read then is of two models.

    A file that another one replaced, as exports replace theirs, has not changed.
    """
    file = open(path, "rb")

    def status():
        found = os.fstat(file.fileno())
        return found.st_size, found.st_mtime_ns

    before = status()

    def check():
        if status() != before:
            raise UserError(f"{path} has changed since it was opened: open the model again")

    return check
