"""The one line for a file of weights whose bytes are not what its name says."""

import pickle
import zipfile
from pathlib import Path

from smke_jax.errors import UserError

# Weights hardly shrink, so that an archive which grows as much as this holds none.
MOST_GROWTH = 64
SMALL = 1 << 30  # bytes that any archive may grow to


def refuse_bomb(path: Path) -> None:
    """Raises UserError where `path` is a zip archive that would unpack to more bytes than weights do."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except Exception:  # no zip archive, or a damaged one: who reads it says so
        return
    if size > max(SMALL, MOST_GROWTH * path.stat().st_size):
        raise UserError(f"{path} would unpack to {size:,} bytes, more than weights do: check it, or unpack it yourself")


def damaged(path: Path, error: Exception) -> UserError:
    """What to raise where reading `path` failed with `error`."""
    # PyTorch's own words on a pickle it refuses are an advice to run it.
    why = "" if isinstance(error, pickle.UnpicklingError) else f" ({first_line(error)})"
    return UserError(f"{path} is damaged, or no {path.suffix} file{why}: fetch it again")


def first_line(error: Exception) -> str:
    """The first sentence of the first line of what `error` says, or the name of its type."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
