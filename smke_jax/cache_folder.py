"""Where compiled programs are kept between processes."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of this package within the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smke_jax" / "compiled"
