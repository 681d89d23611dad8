"""Text files as captions without images: every line is one."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smke_jax.data.prepare.items import Skips, numbered_lines
from smke_jax.data.sources import Example, Source
from smke_jax.errors import UserError

log = logging.getLogger("smke_jax")


class TextLines(Source):
    """The lines of text files, one caption each; empty lines are left out.

    A line that is no text, by the rules of `numbered_lines`, is skipped; a warning says how many there were and why.
    Raises UserError for files that cannot be read and for files without a line of text.
    """

    dataset = "lines"

    def __init__(self, paths: Sequence[str | Path]):
        skips, self._lines = Skips(), []
        for path in map(Path, paths):
            try:
                self._lines += [(text.strip(),) for _, text in numbered_lines(path, skips) if text.strip()]
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}") from None
        for reason, count in Counter(entry["reason"] for entry in skips.entries).items():
            log.warning("%d lines of %s were skipped: %s", count, ", ".join(map(str, paths)), reason)
        if not self._lines:
            raise UserError(f"{', '.join(map(str, paths))} has no line of text: give a file with one caption a line")
        self.names = range(len(self._lines))
        self.num_captions = np.ones(len(self._lines), np.int32)
        self.digest = hashlib.sha256("\n".join(text for (text,) in self._lines).encode()).hexdigest()

    def __getitem__(self, index: int) -> Example:
        raise IndexError(f"line {index} has no image")

    def captions(self, index: int) -> tuple[str, ...]:
        return self._lines[index]

    def all_captions(self) -> list[tuple[str, ...]]:
        return list(self._lines)

    def counts(self) -> list[dict[str, int | str]]:
        return [{"data": self.dataset, "rows": len(self._lines)}]
