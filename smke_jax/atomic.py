"""Write a file or a folder whole or not at all, so that a killed run never leaves half of one behind."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A neighbour of `path` to write to, a file or a folder, which takes its place when the block ends.

    Where the block raises, the neighbour is removed and `path` is as before. A file may replace a file; a folder only
    takes a place that is free. The neighbour lies in the same folder because a rename is atomic only within one file
    system.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield room / path.name
        os.replace(room / path.name, path)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Writes `data` to `path`; makes the folder when missing."""
    path = Path(path)
    with replacing(path) as neighbour:
        neighbour.write_bytes(data)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """`write_bytes` for text, as UTF-8; what is no character, such as half of one in a file's name, is spelt out."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))
