"""The file of a benchmark's figures."""

from pathlib import Path

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.reporting.machine import header


def write(path: str | Path, title: str, command: str, body: str) -> Path:
    """Writes the Markdown file of one benchmark: title, the command that makes it, `header()`, body."""
    try:
        return atomic.write_text(path, f"# {title}\n\n    {command}\n\n{header()}\n\n{body.strip()}\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
