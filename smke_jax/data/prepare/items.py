"""What a dataset's reader hands to the builder, and the book of what was left out."""

import collections
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from smke_jax.errors import UserError

IMAGE_SUFFIXES = frozenset(".jpg .jpeg .jpe .png .gif .bmp .webp .tif .tiff .ppm .pgm .pbm .avif .jp2".split())


class Item(NamedTuple):
    """One image and its captions as found; nothing is checked yet."""

    name: str
    captions: list[str]
    image: Path | bytes
    where: str  # file:line or file, for the list of skipped items


class Options(NamedTuple):
    """What a person may ask of a reader; each reader knows some of them."""

    split: str = "train"  # name of the split of data that comes without splits
    holdout: int = 0  # images to move from `train` to `dev`


class Skips:
    """Collects everything left out, with where it stood and why."""

    def __init__(self):
        self.entries: list[dict[str, str]] = []

    def add(self, where: str, reason: str, *, split: str = "", name: str = "") -> None:
        """`reason` names no file, so that equal reasons can be counted."""
        self.entries.append({"split": split, "name": name, "where": where, "reason": reason})

    def count(self, split: str) -> int:
        return sum(entry["split"] == split for entry in self.entries)

    def reasons(self, split: str | None = None) -> list[tuple[str, int]]:
        """(reason, count) pairs, most frequent first; of one split, or of all when None."""
        chosen = (e["reason"] for e in self.entries if split is None or e["split"] == split)
        return collections.Counter(chosen).most_common()

    def write(self, path: Path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            for entry in self.entries:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def clean_caption(text: object) -> str:
    """Collapses runs of white space (line ends, tabs, no-break spaces) to one space and strips the ends.

    What is no text, such as a null or a number in a json file, becomes '': an empty caption, dropped and counted.
    """
    if not isinstance(text, str):
        return ""
    return re.sub(r"\s+", " ", text.replace("\0", " ")).strip()


def numbered_lines(path: Path, skips: Skips) -> Iterator[tuple[str, str]]:
    """Yields ("file:line", text without its line end); lines that are not UTF-8 are skipped and counted."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path.name}:{number}"
            try:
                yield where, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                skips.add(where, "line is not UTF-8")


def find_path(source: Path, *names: str) -> Path | None:
    """The first of `names` found in `source` or up to two folders below it; None when there is none."""
    for name in names:
        for pattern in (name, f"*/{name}", f"*/*/{name}"):
            for path in sorted(source.glob(pattern)):
                return path
    return None


def require_path(source: Path, *names: str) -> Path:
    """Like `find_path`, but a missing one is the user's mistake."""
    path = find_path(source, *names)
    if path is None:
        raise UserError(f"{source} has no {' or '.join(names)}: point --source at the unpacked dataset")
    return path
