"""Write a file or a folder whole or not at all, so that a killed run never leaves half of one behind."""

import contextlib
import os
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A neighbour of `path` to write to, a file or a folder, which takes its place when the block ends.

    Where the block raises, the neighbour is removed and `path` is as before. A file may replace a file; a folder only
    takes a place that is free. The neighbour lies in the same folder because a rename is atomic only within one file
    system. What a killed process of this machine left of the same path is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name[:40]}-{zlib.crc32(os.fsencode(path.name)):08x}.{socket.gethostname()[:40]}."
    _remove_left_over(path.parent, start)
    room = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{start}{os.getpid()}."))
    try:
        yield room / path.name
        os.replace(room / path.name, path)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _remove_left_over(folder: Path, start: str) -> None:
    """Removes the neighbours whose names begin with `start` and the number of a process that is no more."""
    with os.scandir(folder) as entries:
        found = [(entry.path, entry.name.removeprefix(start)) for entry in entries if entry.name.startswith(start)]
    for path, rest in found:
        pid = rest.partition(".")[0]
        if pid.isdecimal() and not _is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        pass
    return True


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Writes `data` to `path`; makes the folder when missing."""
    path = Path(path)
    with replacing(path) as neighbour:
        neighbour.write_bytes(data)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """`write_bytes` for text, as UTF-8; what is no character, such as half of one in a file's name, is spelt out."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))
