"""Write a file whole or not at all, so that a killed run never leaves half a report behind."""

import os
import tempfile
from pathlib import Path


def write_bytes(path, data: bytes) -> Path:
    """Write `data` to `path` through a temporary neighbour and one rename; make the folder when missing.

    The neighbour lies in the same folder because a rename is atomic only within one file system.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, neighbour = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # mkstemp makes the file readable by its owner only; a report is meant to be shared.
        os.chmod(neighbour, 0o644)
        os.replace(neighbour, path)
    except BaseException:
        os.unlink(neighbour)
        raise
    return path


def write_text(path, text: str) -> Path:
    """`write_bytes` for text, as UTF-8."""
    return write_bytes(path, text.encode("utf-8"))
