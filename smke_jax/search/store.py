"""The files of an index: only ever appended to, so that a kill loses nothing that was written before.

`index.json` says whose embeddings of which photos they are.  Photo number i of all that were ever read has

  photos.bin: RECORD i
  rows.bin: row i, fp16 (D,), its L2-normalised embedding
  names.bin: its path below the folder, as bytes, where the record says
  gone.bin: its number, int64, once it was deleted or changed

A photo is written in the order gone (of what it replaces), row, name, record: what has a record is whole.  The CRC of a
record covers all three.
"""

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.search.photos import DIGEST_BYTES, Photo

ABOUT, LOCK = "index.json", "lock"
RECORDS, ROWS, NAMES, GONE = "photos.bin", "rows.bin", "names.bin", "gone.bin"
FORMAT = 1
RECORD = np.dtype(
    [
        ("size", "<i8"), ("mtime", "<i8"), ("taken", "<i8"), ("name_start", "<i8"), ("name_bytes", "<i4"),
        ("crc", "<u4"), ("digest", "u1", DIGEST_BYTES), ("typical", "<f4"), ("spread", "<f4"),
    ]
)  # fmt: skip


class About(NamedTuple):
    """What `index.json` says.

    model: path of the model; step: of a run, as asked for
    digest: of the model (`Embedder.digest`)
    width: D
    photos: the folder, an absolute path
    """

    model: str
    step: int | str | None
    digest: str
    width: int
    photos: str


class Entry(NamedTuple):
    """A photo to append.  `typical` and `spread`: its scores with the texts of the `smke_jax.search.cutoff` bank."""

    photo: Photo
    digest: bytes
    taken: int
    row: np.ndarray
    typical: float
    spread: float


class Index:
    """An index as it was when it was opened; another process may append to it meanwhile.

    records: (N,) RECORD of all photos that were ever read
    live: bool (N,), those that are still there
    rows: fp16 (N, D), mapped from the file
    """

    def __init__(self, directory: Path):
        """Raises UserError where there is no index or a damaged one."""
        self.directory, self.about = Path(directory), read_about(directory)
        # In the opposite order of writing, so that everything that has a record is there.
        self.records = _read(self.directory / RECORDS, RECORD)
        self._names = (self.directory / NAMES).read_bytes() if (self.directory / NAMES).is_file() else b""
        self.rows = _mapped(self.directory / ROWS, self.about.width)
        count = len(self.records)
        if num_whole(self.records, len(self.rows), len(self._names)) < count:
            raise UserError(f"{directory} is damaged, {ROWS} or {NAMES} is cut: run `smke index` again to mend it")
        self.rows, self.live = self.rows[:count], np.ones(count, bool)
        gone = _read(self.directory / GONE, np.dtype("<i8"))
        self.live[gone[(gone >= 0) & (gone < count)]] = False

    def name(self, number: int) -> str:
        """Path below the folder of photos."""
        return os.fsdecode(self._name(number))

    def path(self, number: int) -> Path:
        return Path(self.about.photos, self.name(number))

    def is_sound(self, number: int) -> bool:
        """Whether the record, the name and the row are as they were written."""
        record = self.records[number]
        return _crc(record, self._name(number), self.rows[number]) == record["crc"]

    def _name(self, number: int) -> bytes:
        start, length = int(self.records["name_start"][number]), int(self.records["name_bytes"][number])
        return self._names[start : start + length]


def num_whole(records: np.ndarray, num_rows: int, num_name_bytes: int) -> int:
    """How many records, from the first, have their row and their name."""
    ends = records["name_start"] + records["name_bytes"]
    fits = (records["name_start"] >= 0) & (records["name_bytes"] > 0) & (ends <= num_name_bytes)
    return min(len(records) if fits.all() else int(np.argmin(fits)), num_rows)


def read_about(directory: str | Path) -> About:
    """What the index in `directory` says about itself; UserError where there is none that can be read."""
    path = Path(directory, ABOUT)
    if not path.is_file():
        raise UserError(f"{directory} holds no index: make one with `smke index --out={directory} …`")
    try:
        about = json.loads(path.read_bytes())
        if about.pop("format") != FORMAT:
            raise UserError(f"{directory} was written by another version of smke: delete it and index again")
        about = About(**about)
        if type(about.width) is not int or about.width < 1 or not isinstance(about.photos, str):
            raise ValueError
        return about
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: delete {directory} and index again") from None


def write_about(directory: Path, about: About) -> None:
    """Whole or not at all."""
    atomic.write_text(directory / ABOUT, json.dumps({"format": FORMAT, **about._asdict()}, indent=2) + "\n")


class Writer:
    """Appends to an index; see `writing`.

    index: as it was when it was opened, mended
    num_mended: photos that were left out because their entries are damaged
    """

    def __init__(self, directory: Path):
        self.num_mended = _cut_to_whole(directory)
        self.index = Index(directory)
        self._directory = directory
        self._names_end = (directory / NAMES).stat().st_size
        damaged = [i for i in np.flatnonzero(self.index.live).tolist() if not self.index.is_sound(i)]
        self.damaged = frozenset(damaged)
        self.num_mended += len(damaged)
        self.forget(damaged)
        self.index.live[damaged] = False

    def forget(self, numbers: Sequence[int]) -> None:
        """Photos that are no more there."""
        if numbers:
            _append(self._directory / GONE, np.asarray(numbers, "<i8").tobytes())

    def append(self, entries: Sequence[Entry], instead_of: Sequence[int] = ()) -> None:
        """Adds photos; `instead_of`: the numbers of those that they replace."""
        self.forget(instead_of)
        if not entries:
            return
        records = np.zeros(len(entries), RECORD)
        names = [os.fsencode(entry.photo.name) for entry in entries]
        rows = np.stack([entry.row for entry in entries]).astype("<f2")
        for record, entry, name, row in zip(records, entries, names, rows, strict=True):
            record["size"], record["mtime"], record["taken"] = entry.photo.size, entry.photo.mtime, entry.taken
            record["name_start"], record["name_bytes"] = self._names_end, len(name)
            record["digest"] = np.frombuffer(entry.digest, np.uint8)
            record["typical"], record["spread"] = entry.typical, entry.spread
            record["crc"] = _crc(record, name, row)
            self._names_end += len(name)
        _append(self._directory / ROWS, rows.tobytes())
        _append(self._directory / NAMES, b"".join(names))
        _append(self._directory / RECORDS, records.tobytes())


@contextlib.contextmanager
def writing(directory: Path, about: About) -> Iterator[Writer]:
    """The one writer of the index in `directory`, which is made where it is missing.

    Raises UserError where another process writes to it, where it was made by another model or of another folder of
    photos, and where the directory holds something else.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: give --out a folder")
    if not (directory / ABOUT).is_file() and _holds_something(directory):
        raise UserError(f"{directory} holds files and no index: give --out an empty or a new folder")
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / LOCK, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another `smke index` is writing to {directory}: wait until it is done") from None
        if (directory / ABOUT).is_file():
            _check_same(directory, read_about(directory), about)
        write_about(directory, about)
        for name in (ROWS, NAMES, RECORDS, GONE):
            (directory / name).touch()
        yield Writer(directory)


def _holds_something(directory: Path) -> bool:
    """Besides what a kill while the index was made leaves there."""
    return directory.is_dir() and any(name != LOCK and not name.startswith(".") for name in os.listdir(directory))


def _check_same(directory: Path, old: About, new: About) -> None:
    if old.digest != new.digest:
        raise UserError(f"{directory} was made by another model, {old.model}: give --out a new folder, or that model")
    if old.photos != new.photos and Path(old.photos).is_dir():
        raise UserError(f"{directory} is of the photos in {old.photos}: give --out a new folder for others")


def _cut_to_whole(directory: Path) -> int:
    """Cuts what a kill or a damage left behind the last whole photo; returns how many records were lost."""
    records = _read(directory / RECORDS, RECORD)
    width = read_about(directory).width
    num_rows = (directory / ROWS).stat().st_size // (2 * width)
    whole = num_whole(records, num_rows, (directory / NAMES).stat().st_size)
    ends = (records["name_start"] + records["name_bytes"])[:whole]
    gone = _read(directory / GONE, np.dtype("<i8"))
    # First of all the numbers that will be given again, which would take the new photos away.
    atomic.write_bytes(directory / GONE, gone[(gone >= 0) & (gone < whole)].tobytes())
    os.truncate(directory / RECORDS, whole * RECORD.itemsize)
    os.truncate(directory / ROWS, whole * 2 * width)
    os.truncate(directory / NAMES, int(ends.max(initial=0)))
    return len(records) - whole


def _read(path: Path, dtype: np.dtype) -> np.ndarray:
    data = path.read_bytes() if path.is_file() else b""
    return np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)


def _mapped(path: Path, width: int) -> np.ndarray:
    count = path.stat().st_size // (2 * width) if path.is_file() else 0
    return np.memmap(path, "<f2", "r", shape=(count, width)) if count else np.zeros((0, width), "<f2")


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _crc(record: np.void, name: bytes, row: np.ndarray) -> int:
    blank = record.copy()
    blank["crc"] = 0
    return zlib.crc32(row.tobytes(), zlib.crc32(name, zlib.crc32(blank.tobytes())))
