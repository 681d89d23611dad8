"""The files of `smke_jax.search.words`, read and written without JAX, which a search imports meanwhile."""

import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from smke_jax import atomic
from smke_jax.data.tokenizer import Tokenizer, saved_tokenizer
from smke_jax.json_text import parse_json

WORDS = "words"  # the folder in the index
FUNCTION, PARAMS, TOKENIZER, ABOUT = "function.bin", "params.safetensors", "tokenizer.json", "about.json"
ALIGNED = 64  # bytes: parameters that begin at a multiple of them stay in the mapped file when JAX takes them


class Kept(NamedTuple):
    """function: exported by JAX; params: its arrays, mapped from their file; made_for: what `write` was given."""

    function: bytes
    params: list[np.ndarray]
    tokenizer: Tokenizer
    max_length: int
    made_for: dict[str, str]


def write(
    index: Path, function: bytes, params: Sequence[np.ndarray], tokenizer: Tokenizer, max_length: int,
    made_for: Mapping[str, str],
) -> None:  # fmt: skip
    """Writes the folder anew, whole or not at all."""
    shutil.rmtree(index / WORDS, ignore_errors=True)
    tensors = _aligned(safetensors.numpy.save({f"{i:05}": np.asarray(x, order="C") for i, x in enumerate(params)}))
    with atomic.replacing(index / WORDS) as folder:
        folder.mkdir()
        tokenizer.save(folder)
        (folder / FUNCTION).write_bytes(function)
        (folder / PARAMS).write_bytes(tensors)
        crc = _crc(function, tensors, (folder / TOKENIZER).read_bytes())
        about = {"max_length": max_length, "pad_id": tokenizer.pad_id, "crc": crc, "made_for": dict(made_for)}
        (folder / ABOUT).write_text(json.dumps(about))


def read(index: Path) -> Kept | None:
    """What `write` wrote; None where it is missing or damaged."""
    folder = index / WORDS
    try:
        about = parse_json((folder / ABOUT).read_bytes())
        function, words = ((folder / name).read_bytes() for name in (FUNCTION, TOKENIZER))
        tensors = np.memmap(folder / PARAMS, np.uint8, "r")
        if about["crc"] != _crc(function, tensors, words):
            return None
        params = _arrays(tensors)
        return Kept(function, params, saved_tokenizer(words, about["pad_id"]), about["max_length"], about["made_for"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _crc(*parts: bytes | np.ndarray) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _aligned(tensors: bytes) -> bytes:
    """The file of safetensors with a header so long that the first array begins at a multiple of ALIGNED."""
    size = int.from_bytes(tensors[:8], "little")
    more = -(8 + size) % ALIGNED
    return (size + more).to_bytes(8, "little") + tensors[8 : 8 + size] + b" " * more + tensors[8 + size :]


def _arrays(tensors: np.ndarray) -> list[np.ndarray]:
    """The arrays of the file, in the order of their names, none of them copied."""
    start = 8 + int.from_bytes(tensors[:8].tobytes(), "little")
    found = parse_json(tensors[8:start].tobytes())
    types = {"F32": np.float32, "F16": np.float16, "I32": np.int32}
    return [
        tensors[start + x["data_offsets"][0] : start + x["data_offsets"][1]].view(types[x["dtype"]]).reshape(x["shape"])
        for _, x in sorted(found.items())
    ]
