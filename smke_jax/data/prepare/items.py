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
    image_id: int | None = None  # where the dataset has ids of its own


class Options(NamedTuple):
    """Options of the command line that change what a reader returns; each reader uses some of them."""

    split: str = "train"  # name of the split of data that comes without splits
    holdout: int = 0  # images to move from `train` to `dev`


def in_order_of_ids(items: list[Item]) -> list[Item]:
    """The items of one split by rising image id; as they come, and without ids, where not every item has its own.

    COCO's average median rank cuts the images into thousands in this order.
    """
    ids = [item.image_id for item in items]
    if None in ids or len(set(ids)) < len(ids):
        return [item._replace(image_id=None) for item in items]
    return sorted(items, key=lambda item: item.image_id)


def whole_number(value: object) -> int | None:
    """`value` where it can be an image id, that is an integer of 64 bits; else None."""
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


class Skips:
    """Collects everything left out, with where it stood and why."""

    def __init__(self):
        self.entries: list[dict[str, str]] = []

    def add(self, where: str, reason: str, *, split: str = "", name: str = "") -> None:
        """Adds one entry. `reason` must not name the file, so that equal reasons can be counted."""
        self.entries.append({"split": split, "name": name, "where": where, "reason": reason})

    def count(self, split: str) -> int:
        return sum(entry["split"] == split for entry in self.entries)

    def reasons(self, split: str | None = None) -> list[tuple[str, int]]:
        """(reason, count) pairs, most frequent first; of one split, or of all when None."""
        chosen = (e["reason"] for e in self.entries if split is None or e["split"] == split)
        return collections.Counter(chosen).most_common()

    def write(self, path: Path) -> None:
        # A file's name need not be UTF-8, and its list entry must not end the work.
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            for entry in self.entries:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def clean_caption(text: object) -> str:
    """Collapses runs of white space (line ends, tabs, no-break spaces) to one space and strips the ends.

    What is no text, such as a null or a number in a json file, becomes '': an empty caption, dropped and counted.
    Half a surrogate pair, such as json's "\\ud83d" alone, cannot be stored: U+FFFD takes its place.
    """
    if not isinstance(text, str):
        return ""
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
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
