"""The files in a tar archive, however it was made or damaged: what is whole comes out, and what is lost is said.

Python's tarfile stops in silence at a damaged header, at the end mark between two joined archives, and where an archive
is cut.  Here reading goes on at the next header, and the bytes that no file accounts for are looked at.
"""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
MOST_GAP = 1 << 20  # bytes looked at in one go
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
STREAM_ERRORS = (EOFError, zlib.error, lzma.LZMAError, OSError)  # reading cannot go on behind one of these


class Member(NamedTuple):
    """A file in the archive.

    name:   its whole path
    start:  of its bytes in `TarMembers.file`
    size:   in bytes
    part:   0 for the first archive of a file, 1 for one that was joined to it, and so on
    """

    name: str
    start: int
    size: int
    part: int


class TarMembers:
    """Iterates over the `Member`s of the archive at `path`, in their order.  To be used in a `with`.

    Attributes:
      damage: what is wrong with the archive, in a few words each; known once all members were seen.
    """

    def __init__(self, path: Path):
        self.damage: list[str] = []
        with open(path, "rb") as file:
            head = file.read(6)
        opener = next((opener for mark, opener in COMPRESSED.items() if head.startswith(mark)), open)
        self.file: BinaryIO = opener(path, "rb")
        self._empty = not head

    def __enter__(self) -> "TarMembers":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def read(self, member: Member) -> bytes | None:
        """The member's bytes; None where the archive is cut before their end."""
        try:
            self.file.seek(member.start)
            data = self.file.read(member.size)
        except STREAM_ERRORS:
            return None
        return data if len(data) == member.size else None

    def __iter__(self) -> Iterator[Member]:
        if self._empty:
            self.damage.append("tar file is empty")
            return
        part = end = 0  # end: of the last member
        try:
            for info, behind in self._headers():
                lost, joined = self._look_between(end, info.offset)
                if lost:
                    self._say("part of the tar file is damaged")
                part += joined
                end = behind
                if info.isreg() and not info.issparse():
                    yield Member(info.name, info.offset_data, info.size, part)
                elif info.isreg() or info.islnk() or info.issym():
                    self._say("tar file holds sparse files or links, which are not read")
            self._look_at_the_end(end)
        except STREAM_ERRORS:
            self._say("tar file ends early or cannot be read to its end")

    def _headers(self) -> Iterator[tuple[tarfile.TarInfo, int]]:
        """Every header that can be read, with where its data end; behind one that cannot, the search goes on."""
        position = 0
        while True:
            self.file.seek(position)
            try:
                tar = tarfile.TarFile(fileobj=self.file, ignore_zeros=True)
                while (info := tar.next()) is not None:
                    tar.members.clear()  # millions of them need not be kept
                    yield info, tar.offset
                return
            except STREAM_ERRORS:
                raise
            except Exception as error:  # damaged extended headers raise anything
                if "unexpected end" in str(error) or "empty file" in str(error) or "truncated" in str(error):
                    return  # the end: `_look_at_the_end` sees what is missing there
                self._say("part of the tar file is damaged")
                position = max(position + BLOCK, self.file.tell() // BLOCK * BLOCK)

    def _look_between(self, start: int, stop: int) -> tuple[bool, bool]:
        """(whether bytes are lost between two members, whether an end mark lies there)."""
        if stop <= start:
            return False, False
        back = self.file.tell()
        self.file.seek(start)
        zeros, left, lost = 0, stop - start, False
        while left > 0 and (chunk := self.file.read(min(left, MOST_GAP))):
            left -= len(chunk)
            lost = lost or any(chunk)
            zeros += chunk.count(0)
        self.file.seek(back)
        return lost, not lost and zeros >= 2 * BLOCK

    def _look_at_the_end(self, end: int) -> None:
        self.file.seek(max(0, end - 1))
        tail = self.file.read(2 * BLOCK + (end > 0))
        is_short, tail = end > 0 and not tail, tail[end > 0 :]
        if is_short or any(tail):
            self._say("tar file ends early or cannot be read to its end")
        elif len(tail) < 2 * BLOCK:
            self._say("tar file has no end mark: it may have been cut")

    def _say(self, what: str) -> None:
        if what not in self.damage:
            self.damage.append(what)
