"""The files of an index: only ever appended to, so that a kill loses nothing that was written before.

`index.json` says whose embeddings of which photos they are.  Photo number i of all that were read has

  photos.bin: RECORD i
  rows.bin: row i, fp16 (D,), its L2-normalised embedding
  names.bin: its path below the folder, as bytes, where the record says
  gone.bin: its number, int64, once it was deleted or changed

A photo is written in the order gone (of what it replaces), row, name, record: what has a record is whole.  The CRC of a
record covers all three.

`Writer.compact` writes the files anew without the photos that are gone, as the next generation: `photos.1.bin` and so
on.  One replacement of `index.json`, which says what generation is valid, ends it.  The files of others are remains of
a kill, and the next writer removes them.
"""

import contextlib
import json
import os
import re
import shlex
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json
from smke_jax.lock import locked
from smke_jax.search.photos import DIGEST_BYTES, Photo

ABOUT, LOCK = "index.json", "lock"
RECORDS, ROWS, NAMES, GONE = "photos.bin", "rows.bin", "names.bin", "gone.bin"
FORMAT = 1
GENERATIONS = re.compile(r"(photos|rows|names|gone)(\.[0-9]+)?\.bin")
WIDEST = 1 << 20  # numbers of an embedding
MOST_GONE = 0.2  # of the rows, before the index is written anew
COPIED_AT_ONCE = 4096  # rows
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
    generation: of the files
    """

    model: str
    step: int | str | None
    digest: str
    width: int
    photos: str
    generation: int = 0


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
        self.directory, about = Path(directory), None
        while about is None or about.generation != self.about.generation:  # the files were written anew meanwhile
            self.about = about or read_about(directory)
            # In the opposite order of writing, so that everything that has a record is there.
            self.records = _read(self._place(RECORDS), RECORD)
            self._names = _read(self._place(NAMES), np.dtype("u1")).tobytes()
            self.rows = _mapped(self._place(ROWS), self.about.width)
            gone = _read(self._place(GONE), np.dtype("<i8"))
            about = read_about(directory)
        count = len(self.records)
        if num_whole(self.records, len(self.rows), len(self._names)) < count:
            raise UserError(f"{directory} is damaged, {ROWS} or {NAMES} is cut: run `smke index` again to mend it")
        self.rows, self.live = self.rows[:count], np.ones(count, bool)
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

    def _place(self, name: str) -> Path:
        return place(self.directory, name, self.about.generation)

    def _name(self, number: int) -> bytes:
        start, length = int(self.records["name_start"][number]), int(self.records["name_bytes"][number])
        return self._names[start : start + length]


def place(directory: Path, name: str, generation: int) -> Path:
    """Of a file of an index: RECORDS, ROWS, NAMES or GONE."""
    return directory / (name if generation == 0 else name.replace(".bin", f".{generation}.bin"))


def state_of(directory: Path) -> list[tuple[int, int, int] | None]:
    """What is another once the index was written to; UserError where it cannot be read."""
    about, found = read_about(directory), []
    for path in (directory / ABOUT, *(place(directory, name, about.generation) for name in (RECORDS, GONE))):
        try:
            status = os.stat(path)
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            found.append(None)
    return found


def num_whole(records: np.ndarray, num_rows: int, num_name_bytes: int) -> int:
    """How many records, from the first, have their row and their name."""
    ends = records["name_start"] + records["name_bytes"]
    fits = (records["name_start"] >= 0) & (records["name_bytes"] > 0) & (ends <= num_name_bytes)
    return min(len(records) if fits.all() else int(np.argmin(fits)), num_rows)


def read_about(directory: str | Path) -> About:
    """What the index in `directory` says about itself; UserError where there is none that can be read."""
    path = Path(directory, ABOUT)
    if not path.is_file():
        raise UserError(f"{directory} holds no index: make one with `smke index --out={shlex.quote(str(directory))} …`")
    try:
        about = parse_json(path.read_bytes())
        if about.pop("format") != FORMAT:
            raise UserError(f"{directory} was written by another version of smke: delete it and index again")
        about = About(**about)
        if type(about.width) is not int or not 0 < about.width <= WIDEST or not isinstance(about.photos, str):
            raise ValueError
        if type(about.generation) is not int or about.generation < 0:
            raise ValueError
        return about
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: delete {directory} and index again") from None


def write_about(directory: Path, about: About) -> None:
    """Whole or not at all, and on the disk when it returns."""
    with atomic.replacing(directory / ABOUT) as neighbour:
        _append(neighbour, (json.dumps({"format": FORMAT, **about._asdict()}, indent=2) + "\n").encode())
    _sync_folder(directory)


class Writer:
    """Appends to an index; see `writing`.

    index: as it was when it was opened, mended
    num_mended: photos that were left out because their entries are damaged
    """

    def __init__(self, directory: Path):
        self.num_mended = _cut_to_whole(directory)
        self._directory = directory
        self._open()
        damaged = [i for i in np.flatnonzero(self.index.live).tolist() if not self.index.is_sound(i)]
        self.damaged = frozenset(damaged)
        self.num_mended += len(damaged)
        self.forget(damaged)
        self.index.live[damaged] = False

    def _open(self) -> None:
        self.index = Index(self._directory)
        self._names_end = self._place(NAMES).stat().st_size

    def _place(self, name: str) -> Path:
        return place(self._directory, name, self.index.about.generation)

    def forget(self, numbers: Sequence[int]) -> None:
        """Photos that are no more there."""
        if numbers:
            _append(self._place(GONE), np.asarray(numbers, "<i8").tobytes())

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
        _append(self._place(ROWS), rows.tobytes())
        _append(self._place(NAMES), b"".join(names))
        _append(self._place(RECORDS), records.tobytes())

    def compact(self) -> int:
        """Writes the index anew where more than MOST_GONE of its rows are of photos that are gone.

        Returns how many were left out.  Whoever reads meanwhile or after a kill has the old files or the new ones.
        """
        self._open()
        old = self.index
        # The new records have new sums: a damaged photo may not become a sound one.
        kept = np.array([i for i in np.flatnonzero(old.live).tolist() if old.is_sound(i)], np.int64)
        num_gone = len(old.records) - len(kept)
        if num_gone <= MOST_GONE * len(old.records):
            return 0
        about = old.about._replace(generation=old.about.generation + 1)
        _write_generation(self._directory, about.generation, old, kept)
        write_about(self._directory, about)
        _remove_other_generations(self._directory, about.generation)
        self._open()
        return num_gone


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
    busy = f"another `smke index` is writing to {directory}: wait until it is done"
    with locked(directory / LOCK, lambda holder: busy):
        if (directory / ABOUT).is_file():
            old = read_about(directory)
            _check_same(directory, old, about)
            about = about._replace(generation=old.generation)
        write_about(directory, about)
        _remove_other_generations(directory, about.generation)
        for name in (ROWS, NAMES, RECORDS, GONE):
            place(directory, name, about.generation).touch()
        yield Writer(directory)


def _holds_something(directory: Path) -> bool:
    """Besides what a kill while the index was made leaves there."""
    return directory.is_dir() and any(name != LOCK and not name.startswith(".") for name in os.listdir(directory))


def _check_same(directory: Path, old: About, new: About) -> None:
    if old.digest != new.digest:
        raise UserError(f"{directory} was made by another model, {old.model}: give --out a new folder, or that model")
    if old.photos != new.photos and os.path.isdir(old.photos):
        raise UserError(f"{directory} is of the photos in {old.photos}: give --out a new folder for others")


def _cut_to_whole(directory: Path) -> int:
    """Cuts what a kill or a damage left behind the last whole photo; returns how many records were lost."""
    about = read_about(directory)
    at = {name: place(directory, name, about.generation) for name in (ROWS, NAMES, RECORDS, GONE)}
    records = _read(at[RECORDS], RECORD)
    num_rows = at[ROWS].stat().st_size // (2 * about.width)
    whole = num_whole(records, num_rows, at[NAMES].stat().st_size)
    ends = (records["name_start"] + records["name_bytes"])[:whole]
    gone = _read(at[GONE], np.dtype("<i8"))
    # First of all the numbers that will be given again, which would take the new photos away.
    atomic.write_bytes(at[GONE], gone[(gone >= 0) & (gone < whole)].tobytes())
    os.truncate(at[RECORDS], whole * RECORD.itemsize)
    os.truncate(at[ROWS], whole * 2 * about.width)
    os.truncate(at[NAMES], int(ends.max(initial=0)))
    return len(records) - whole


def _write_generation(directory: Path, generation: int, old: Index, kept: np.ndarray) -> None:
    """The photos `kept` of `old` as files of another generation."""
    records, names = old.records[kept], [os.fsencode(old.name(i)) for i in kept.tolist()]
    records["name_start"] = np.cumsum(records["name_bytes"]) - records["name_bytes"]
    for start in range(0, max(len(kept), 1), COPIED_AT_ONCE):
        rows = old.rows[kept[start : start + COPIED_AT_ONCE]]
        for number, row in enumerate(rows, start):
            records[number]["crc"] = _crc(records[number], names[number], row)
        _append(place(directory, ROWS, generation), rows.tobytes())
    _append(place(directory, NAMES, generation), b"".join(names))
    _append(place(directory, RECORDS, generation), records.tobytes())
    _append(place(directory, GONE, generation), b"")
    _sync_folder(directory)


def _remove_other_generations(directory: Path, generation: int) -> None:
    valid = {place(directory, name, generation).name for name in (ROWS, NAMES, RECORDS, GONE)}
    for name in os.listdir(directory):
        if GENERATIONS.fullmatch(name) and name not in valid:
            (directory / name).unlink()


def _read(path: Path, dtype: np.dtype) -> np.ndarray:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    return np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)


def _mapped(path: Path, width: int) -> np.ndarray:
    try:
        count = path.stat().st_size // (2 * width)
        return np.memmap(path, "<f2", "r", shape=(count, width)) if count else np.zeros((0, width), "<f2")
    except FileNotFoundError:
        return np.zeros((0, width), "<f2")


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(directory: Path) -> None:
    """What was renamed and made in it is on the disk then."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _crc(record: np.void, name: bytes, row: np.ndarray) -> int:
    blank = record.copy()
    blank["crc"] = 0
    return zlib.crc32(row.tobytes(), zlib.crc32(name, zlib.crc32(blank.tobytes())))
