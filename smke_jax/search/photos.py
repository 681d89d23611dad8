"""The photos below a folder, and what is read of one of them."""

import calendar
import hashlib
import io
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from smke_jax.data.prepare.items import IMAGE_SUFFIXES

RAW_SUFFIXES = frozenset(".3fr .arw .cr2 .cr3 .dng .erf .nef .nrw .orf .pef .raf .raw .rw2 .srw .x3f".split())
# Folders of systems, which hold thumbnails, deleted photos or programs.  What begins with a dot is hidden anyway.
SYSTEM_FOLDERS = frozenset(
    "@eadir #recycle #snapshot $recycle.bin recycler lost+found __macosx __pycache__ node_modules".split()
) | {"system volume information"}
DIGEST_BYTES = 16
EXIF, ORIGINAL, CHANGED = 0x8769, 0x9003, 0x0132  # the tags of EXIF: its folder, the time of the photo, of the file


class Photo(NamedTuple):
    """A file that looks like a photo.

    name: path below the folder, with half surrogates for bytes that are no UTF-8
    size: bytes
    mtime: nanoseconds
    """

    name: str
    size: int
    mtime: int


class Left(NamedTuple):
    """What is left out, and why.  `is_folder`: nobody knows what lies below it."""

    name: str
    reason: str
    is_folder: bool = False


def photos_below(root: Path) -> Iterator[Photo | Left]:
    """The photos below `root` in the order of their paths, and what is left out with its reason.

    Hidden files, hidden and system folders and files that are no pictures are passed over without a word.  Links to
    folders are not followed, so that no photo comes twice and no link leads out of the folder or around in it.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield Left(folder or ".", f"folder cannot be read: {error.strerror}", is_folder=True)
            continue
        inner = []
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if entry.name.casefold() not in SYSTEM_FOLDERS:
                    inner.append(name)
            elif (found := _file(entry, name)) is not None:
                yield found
        waiting += reversed(inner)


def _file(entry: os.DirEntry, name: str) -> Photo | Left | None:
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in RAW_SUFFIXES:
        return Left(name, "raw photo: export it as JPEG to find it")
    try:
        status = entry.stat()  # of what a link leads to
    except OSError as error:
        is_photo = suffix in IMAGE_SUFFIXES
        return Left(name, f"link or file cannot be read: {error.strerror}") if is_photo else None
    if entry.is_symlink() and stat.S_ISDIR(status.st_mode):
        return Left(name, "link to a folder, which is not followed")
    if suffix not in IMAGE_SUFFIXES:
        return None
    if not stat.S_ISREG(status.st_mode):
        return Left(name, "no regular file")
    return Photo(name, status.st_size, status.st_mtime_ns)


class PhotoFile:
    """A photo for the embedder: read when its turn comes, and noted then, so that no file is read twice.

    digest: of the bytes, once read
    taken: when the photo was taken by its EXIF, else when the file was changed, once read: seconds of the clock on the
      wall, as if that were UTC
    """

    def __init__(self, root: Path, photo: Photo):
        self.photo, self.digest, self.taken = photo, b"", wall_clock(photo.mtime)
        self._path = root / photo.name

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes; OSError, which says the reason alone, where they cannot be read."""
        try:
            with open(self._path, "rb") as file:
                data = file.read(limit)
        except OSError as error:
            raise OSError(error.strerror) from error
        self.digest = hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
        self.taken = time_taken(data, self.taken)
        return data


def digest_of(path: Path) -> bytes:
    """What `PhotoFile.digest` would be, at no memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()


def wall_clock(mtime: int) -> int:
    """Nanoseconds since 1970 -> seconds of this place's clock on the wall, as if that were UTC."""
    try:
        return calendar.timegm(time.localtime(mtime // 10**9))
    except (OverflowError, ValueError, OSError):  # a broken file system can give any number
        return 0


def time_taken(data: bytes, otherwise: int) -> int:
    """What the EXIF of a picture says, in seconds of the clock on the wall."""
    from PIL import Image  # which a search goes without

    try:
        exif = Image.open(io.BytesIO(data)).getexif()
        text = exif.get_ifd(EXIF).get(ORIGINAL) or exif.get(CHANGED)
        return calendar.timegm(time.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S"))
    except Exception:  # PIL raises nearly every built-in exception on damaged files; embedding names the reason
        return otherwise
