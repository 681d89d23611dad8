"""S-SMKE in JAX: small image-text retrieval models distilled from a frozen, self-supervised image teacher."""

import time

__version__ = "0.1.0"
IMPORTED = time.time()  # in seconds since 1970: source that changed later is not what this process runs


def __getattr__(name: str):
    # Opened on first use: the models behind it take seconds to import, and `smke --help` needs none of them.
    if name == "load":
        from smke_jax.embedder import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
