"""Parameters as a directory: `params.safetensors`, 'a/b/c' paths as keys, the model's description in its metadata.

Beside it lies what belongs to the model: `tokenizer/` for one that reads text.
"""

import contextlib
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from smke_jax import atomic
from smke_jax.convert.int8 import restored
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json
from smke_jax.paths import flat as flat_of
from smke_jax.paths import nested

PARAMS = "params.safetensors"
TOKENIZER = "tokenizer"
DESCRIPTION = "smke_jax"  # the one entry of the file's metadata: safetensors writes several in any order
SUMS = "sums"  # in it: a flipped byte is no error to safetensors, and a model of other weights looks sound


def save_params(path: str | Path, params: Any, description: dict) -> None:
    """Writes `params` (nested dict of arrays) and `description` (JSON-able), whole or not at all."""
    flat = {key: np.asarray(value, order="C") for key, value in flat_of(params).items()}
    sums = {"description": _sum([json.dumps(description).encode()]), "arrays": _sum_of(flat)}
    # Not save_file: it hides the system's reason for a failure and makes the file unreadable for others.
    text = json.dumps({**description, SUMS: sums})
    atomic.write_bytes(path, safetensors.numpy.save(flat, metadata={DESCRIPTION: text}))


@contextlib.contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """An empty neighbour of `directory`, --out of a program, to fill; it is there whole or not at all.

    Raises UserError where the system does not let it be written.
    """
    try:
        with atomic.replacing(directory) as partial:
            partial.mkdir()
            yield partial
    except OSError as error:
        raise UserError(
            f"{directory} cannot be written ({error.strerror or error}): make room or change --out"
        ) from None


def read_description(path: str | Path) -> dict:
    """The description in a file or directory that `save_params` wrote: {'model': …, 'source': …}."""
    with _open(path) as file:
        metadata = file.metadata() or {}
    if DESCRIPTION not in metadata:
        raise UserError(f"{path} does not say what model it holds: run `smke convert` on it first")
    return _described(metadata[DESCRIPTION], path)[0]


def load_params(path: str | Path) -> Any:
    """Nested dict of fp32 arrays; UserError where they are not those that were saved."""
    with _open(path) as file:
        flat = {key: file.get_tensor(key) for key in file.keys()}
        metadata = file.metadata() or {}
    sums = _described(metadata[DESCRIPTION], path)[1] if DESCRIPTION in metadata else {}
    if sums.get("arrays") not in (None, _sum_of(flat)):  # files of earlier versions have none
        raise UserError(f"the weights in {path} are damaged: fetch or convert them again")
    return nested({key: x.astype(np.float32, copy=False) for key, x in restored(flat).items()})


def _described(text: str, path: str | Path) -> tuple[dict, dict[str, str]]:
    """(description, sums) of the file's entry; UserError where it is not what was written."""
    try:
        description = parse_json(text)
        sums = description.pop(SUMS, {})
        if sums:
            is_sound = sums["description"] == _sum([json.dumps(description).encode()])
        else:  # a file of an earlier version
            is_sound = isinstance(description["model"]["type"], str)
        if is_sound:
            return description, sums
    except (ValueError, AttributeError, TypeError, KeyError):
        pass
    raise UserError(f"what {path} says of its model is damaged: fetch or convert it again")


def _sum(pieces: Iterable[bytes | np.ndarray]) -> str:
    total = 0
    for piece in pieces:
        total = zlib.crc32(piece, total)
    return f"{total:08x}"


def _sum_of(flat: dict[str, np.ndarray]) -> str:
    return _sum(piece for key in sorted(flat) for piece in (key.encode(), flat[key].reshape(-1).view(np.uint8)))


def file_digest(path: str | Path) -> str:
    """Hex sha256 of a file, or of the parameters in a directory."""
    with params_path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(path: str | Path) -> dict[str, str]:
    """{'weights': of these parameters, 'source file': of the file they were converted from, where they were}."""
    source = read_description(path).get("source", {}).get("sha256")
    return {"weights": file_digest(path), **({"source file": source} if source else {})}


def params_path(path: str | Path) -> Path:
    """The file of parameters: `path` itself, or the one in that directory."""
    path = Path(path)
    return path / PARAMS if path.is_dir() else path


def _open(path):
    file = params_path(path)
    if not file.is_file():
        raise UserError(
            f"no weights at {path}: give what `smke convert` or `smke export` wrote, or 'random' to go without"
        )
    try:
        return safetensors.safe_open(file, framework="numpy")
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} is no sound safetensors file ({error}): fetch or convert it again") from None


def fit(target: Any, loaded: Any, *, source: str) -> Any:
    """`loaded` cut to the parameters of `target` (arrays or shapes), strict but for what may be left out at the end.

    A file may hold more `block_<i>`, and what belongs to each of them, than the target: the first ones are kept (the
    thesis' truncated towers).  It may also hold a pooler or a last norm (a teacher's, with final_norm False) that the
    target does without.
    Raises UserError listing every missing, unexpected and mis-shaped key.
    """
    want, have = flat_of(target), flat_of(loaded)
    left = ("block_", "relative_bias_", "pooler", "norm")
    surplus = {key for key in have if key not in want and key.split("/")[0].startswith(left)}
    problems = [f"missing {key}" for key in sorted(set(want) - set(have))]
    problems += [f"unexpected {key}" for key in sorted(set(have) - set(want) - surplus)]
    problems += [
        f"{key} is {have[key].shape} in the file and {want[key].shape} in the model"
        for key in sorted(set(want) & set(have))
        if have[key].shape != want[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise UserError(f"{source} does not fit the model: {shown}")
    return nested({key: have[key] for key in want})
