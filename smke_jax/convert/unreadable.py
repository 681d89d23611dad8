"""The one line for a file of weights whose bytes are not what its name says."""

import pickle
from pathlib import Path

from smke_jax.errors import UserError


def damaged(path: Path, error: Exception) -> UserError:
    """What to raise where reading `path` failed with `error`."""
    # PyTorch's own words on a pickle it refuses are an advice to run it.
    why = "" if isinstance(error, pickle.UnpicklingError) else f" ({first_line(error)})"
    return UserError(f"{path} is damaged, or no {path.suffix} file{why}: fetch it again")


def first_line(error: Exception) -> str:
    """The first sentence of the first line of what `error` says, or the name of its type."""
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
