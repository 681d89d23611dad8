"""The listing of a split: id, name and captions of each image, read by position and without any image.

`SPLIT.listing.jsonl` has one line for each image: {"image_id": 42, "name": "a.jpg", "captions": ["A dog ."]}.
`SPLIT.listing.npz` has what is wanted of all images at once, and where each line begins:

  starts: int64 (N + 1,), bytes from the start of the file; the last is the length of the file.
  num_captions: int32 (N,).
  image_ids: int64 (N,).
"""

import array
import json
import mmap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax.data.damage import DamagedImage
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json


class Entry(NamedTuple):
    """One image of a listing."""

    image_id: int
    name: str
    captions: tuple[str, ...]


class ListingWriter:
    """Writes the listing of one split, image by image."""

    def __init__(self, directory: Path, split: str):
        self._lines, self._table = _paths(directory, split)
        self._file = open(self._lines, "wb")
        self._starts, self._num_captions, self._image_ids = array.array("q", [0]), array.array("i"), array.array("q")

    def __len__(self) -> int:
        return len(self._image_ids)

    def write(self, entry: Entry) -> None:
        line = json.dumps(entry._asdict(), ensure_ascii=False).encode() + b"\n"
        self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))
        self._num_captions.append(len(entry.captions))
        self._image_ids.append(entry.image_id)

    def close(self) -> None:
        self._file.close()
        np.savez(
            self._table,
            starts=np.array(self._starts, np.int64),
            num_captions=np.array(self._num_captions, np.int32),
            image_ids=np.array(self._image_ids, np.int64),
        )


class Listing:
    """A split's listing; reading is thread-safe.

    Attributes:
      num_captions: int32 (N,).
      image_ids: int64 (N,).

    Raises:
      UserError: on opening, where a file is missing, cut or damaged.
      DamagedImage: on reading, where the line of one image is damaged.
    """

    def __init__(self, directory: Path, split: str):
        self._path, table = _paths(directory, split)
        for path in (self._path, table):
            if not path.is_file():
                raise UserError(f"{path} is missing: run `smke prepare` again")
        try:
            arrays = np.load(table)
            self._starts, self.num_captions, self.image_ids = (
                arrays[name] for name in ("starts", "num_captions", "image_ids")
            )
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            raise UserError(f"{table} is damaged: run `smke prepare` again") from None
        size = self._path.stat().st_size
        if not len(self._starts) - 1 == len(self.num_captions) == len(self.image_ids) or size != self._starts[-1]:
            raise UserError(f"{self._path} and {table.name} do not belong together: run `smke prepare` again")
        with open(self._path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Entry:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._path} has {len(self)} lines, no number {index}")
        return self._entry(index, self._bytes[self._starts[index] : self._starts[index + 1]])

    def __iter__(self) -> Iterator[Entry]:
        """All entries in order; faster than one by one."""
        with open(self._path, "rb") as file:
            for index, line in enumerate(file):
                yield self._entry(index, line)

    def _entry(self, index: int, line: bytes) -> Entry:
        try:
            entry = parse_json(line)
            return Entry(entry["image_id"], entry["name"], tuple(entry["captions"]))
        except (ValueError, KeyError, TypeError):
            reason = f"line {index + 1} of {self._path.name} is damaged"
            raise DamagedImage(f"number {index}", reason) from None


def _paths(directory: Path, split: str) -> tuple[Path, Path]:
    return directory / f"{split}.listing.jsonl", directory / f"{split}.listing.npz"
