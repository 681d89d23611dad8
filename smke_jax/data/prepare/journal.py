"""What an interrupted preparation has finished, so that the same command goes on behind it.

The journal of a split has a line for every item in order, and a line for every shard that was closed.  It is written
when a shard is closed, so that it never speaks of an image that is not on the disk.  What stands behind the last closed
shard is done again.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from smke_jax.data.prepare.items import Item, existing
from smke_jax.json_text import parse_json

ENDING = ".journal.jsonl"


class Outcome(NamedTuple):
    """What became of an item.

    item:   digest of the item as it was found, see `found`
    digest: hex sha256 of the bytes that are stored of its image; '' for a bad one
    is_new: whether those bytes were encoded here
    reason: why the image is bad; '' for a good one
    """

    item: str
    digest: str = ""
    is_new: bool = False
    reason: str = ""


def found(item: Item) -> str:
    """Digest of an item's name, captions and file: of the bytes, or of the file's size and time."""
    if isinstance(item.image, Path):
        try:
            stat = existing(item.image).stat()
            file = f"{stat.st_size} {stat.st_mtime_ns}"
        except (OSError, ValueError):
            file = "none"
    else:
        file = hashlib.sha256(item.image).hexdigest()
    said = json.dumps([item.name, item.captions, item.image_id, file], default=str)
    return hashlib.sha256(said.encode("utf-8", "backslashreplace")).hexdigest()


class Journal:
    """The journal of one split.

    done:      the outcomes up to the last closed shard, in order
    lengths:   how many records the closed shards have
    num_bytes: of all these records
    """

    def __init__(self, directory: Path, split: str):
        self.done: list[Outcome] = []
        self.lengths: list[int] = []
        self.num_bytes = 0
        self._path = directory / f"{split}{ENDING}"
        self._file = open(self._path, "a+b")
        self._pending: list[Outcome] = []
        self._seen = 0
        self._read()

    def _read(self) -> None:
        self._file.seek(0)
        outcomes, offset, closed = [], 0, 0
        for line in self._file:
            try:
                row = parse_json(line)
            except ValueError:
                break  # cut off by a crash
            offset += len(line)
            if isinstance(row, list):
                outcomes.append(Outcome(*row))
            else:
                self.done += outcomes
                self.lengths, self.num_bytes, outcomes, closed = row["lengths"], row["num_bytes"], [], offset
        self._file.truncate(closed)

    def add(self, outcome: Outcome) -> None:
        """Notes the outcome of the next item, counted from the first; a good image is written to its shard before."""
        self._seen += 1
        if self._seen > len(self.done):
            self._pending.append(outcome)

    def seal(self, lengths: list[int], num_bytes: int) -> None:
        """All shards are closed: they and the outcomes so far are kept."""
        rows = [*self._pending, {"lengths": lengths, "num_bytes": num_bytes}]
        self._file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._pending = []

    def close(self) -> None:
        self._file.close()


def any_closed_shard(directory: Path) -> bool:
    """Whether there is something in the folder to go on from."""
    return any(re.search(rb'"lengths": \[\d', path.read_bytes()) for path in directory.glob(f"*{ENDING}"))


def remove_journals(directory: Path) -> None:
    """The work is done: what tells how to go on with it goes."""
    for path in directory.glob(f"*{ENDING}"):
        path.unlink()
