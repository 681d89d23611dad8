"""What a dataset's reader hands to the builder, and the book of what was left out."""

import codecs
import collections
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from smke_jax.errors import UserError

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .pjpeg .pjp .png .apng .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .tga .avif .jp2 "
    ".heic .heif .hif".split()
)
CAPTION_SUFFIXES = (".txt", ".caption", ".text")
BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


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
    """Collects everything left out, with where it stood and why, and what was read with a doubt.

    Attributes:
      entries: of each item that was skipped.
      lost: of each place behind which items may lie that could not be reached, with their number where it is known.
      notes: {what was done to read something: how often}.
    """

    def __init__(self):
        self.entries: list[dict[str, str]] = []
        self._listed = 0
        self.lost: list[dict[str, str | int | None]] = []
        self.notes: collections.Counter[str] = collections.Counter()

    def add(self, where: str, reason: str, *, split: str = "", name: str = "", listed: bool = False) -> None:
        """Adds one entry. `reason` must not name the file, so that equal reasons can be counted.

        listed: whether a reader listed the item, so that it is counted as read already.
        """
        self._listed += listed
        self.entries.append({"split": split, "name": name, "where": where, "reason": reason})

    def add_lost(self, where: str, reason: str, items: int | None, split: str = "") -> None:
        """Says that `items` of them, or an unknown number when None, lie where nothing can be read."""
        self.lost.append({"split": split, "where": where, "reason": reason, "not_reached": items})

    def count(self, split: str) -> int:
        return sum(entry["split"] == split for entry in self.entries)

    def by_readers(self) -> int:
        """How many entries are of what no reader listed."""
        return len(self.entries) - self._listed

    def not_reached(self) -> tuple[int, int]:
        """(how many items are known not to have been reached, at how many places nobody knows how many)."""
        counts = [entry["not_reached"] for entry in self.lost]
        return sum(count for count in counts if count is not None), counts.count(None)

    def reasons(self) -> list[tuple[str, int, str]]:
        """(reason, count, where it first stood), most frequent first."""
        rows = [*self.entries, *self.lost]
        first: dict[str, str] = {}
        for entry in rows:
            first.setdefault(entry["reason"], entry["where"])
        counts = collections.Counter(entry["reason"] for entry in rows)
        return [(reason, count, first[reason]) for reason, count in counts.most_common()]

    def write(self, path: Path) -> None:
        # A file's name need not be UTF-8, and its list entry must not end the work.
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            for entry in [*self.entries, *self.lost]:
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
    """Yields ("file:line", text without its line end), whichever of \\n, \\r\\n and \\r ends a line.

    UTF-8, or what the file's first bytes say.  A line that is not UTF-8 is read as Windows-1252 where that gives words,
    which is noted; else it is skipped and counted.
    """
    with open(path, "rb") as file:
        encoding = _encoding(file.read(4))
    # Bytes that are no UTF-8 come out as half surrogates, and go back to the same bytes.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    with open(path, encoding=encoding, errors=errors, newline=None) as file:
        for number, line in enumerate(file, start=1):
            where, line = f"{path.name}:{number}", line.rstrip("\n")
            if errors == "surrogateescape" and re.search("[\udc80-\udcff]", line):
                line = _western(line.encode("utf-8", "surrogateescape"))
                if line is None:
                    skips.add(where, "line is not UTF-8")
                    continue
                skips.notes["lines that are not UTF-8 were read as Windows-1252"] += 1
            yield where, line


def decode_text(data: bytes) -> str:
    """The text in the bytes of a small file, by the rules of `numbered_lines`; U+FFFD for what is no text."""
    encoding = _encoding(data[:4])
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        text = _western(data) if encoding.startswith("utf-8") else None
        return data.decode(encoding, "replace") if text is None else text


def _encoding(start: bytes) -> str:
    for bom, encoding in BOMS:
        if start.startswith(bom):
            return encoding
    # UTF-16 without its mark: of a Latin letter, every other byte is 0.
    zeros = [byte == 0 for byte in start]
    return {(0, 1, 0, 1): "utf-16-le", (1, 0, 1, 0): "utf-16-be"}.get(tuple(zeros), "utf-8")


def _western(data: bytes) -> str | None:
    """`data` as Windows-1252 where its letters beyond ASCII stand within words of ASCII letters; else None.

    Text in another alphabet, and bytes that are no text, have them side by side.
    """
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    return None if re.search(r"(?<![A-Za-z])[^\W\d_A-Za-z](?![A-Za-z])|[^\W\d_A-Za-z]{2}", text) else text


def files_below(source: Path) -> list[Path]:
    """All files below a folder in the order of their paths, without hidden ones; links to folders are followed."""
    found, seen = [], set()
    for folder, inner, names in os.walk(source, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up
            inner.clear()
            continue
        seen.add(real)
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [path for name in names if not name.startswith(".") and (path := Path(folder, name)).is_file()]
    return sorted(found)


class Files:
    """All files below a folder, by name: public datasets are found nested and renamed in many ways, names stay."""

    def __init__(self, source: Path):
        self.source = source
        self._paths: dict[str, Path] = {}
        for path in sorted(files_below(source), key=lambda path: (len(path.parts), path)):
            self._paths.setdefault(path.name.casefold(), path)

    def find(self, *names: str) -> Path | None:
        """The file of the first of `names` that there is; of several of one name, the one least deep."""
        return next((path for name in names if (path := self._paths.get(name.casefold()))), None)

    def picture(self, name: str) -> Path:
        """The file of that name; where there is none, the path at which it would be looked for first."""
        return self.find(PurePosixPath(name.replace("\\", "/")).name) or self.source / name

    def missing(self, *names: str) -> UserError:
        """What to raise where none of `names` is there."""
        return UserError(
            f"{self.source} has none of {', '.join(names)}, however deep: point --source at the unpacked dataset"
        )


def existing(path: Path) -> Path:
    """`path`, or the file that it means where it was written on another system; `path` where there is none.

    Windows separates folders by backslashes, and macOS stores the letters of a name decomposed.
    """
    if path.exists():
        return path
    text = str(path)
    slashed = text.replace("\\", "/")
    for variant in (slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))):
        if variant != text and Path(variant).is_file():
            return Path(variant)
    return path
