"""Brings an index up to date with its folder of photos: what is new or changed is embedded, and nothing else."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Protocol

import numpy as np

from smke_jax import atomic
from smke_jax.data.progress import Progress
from smke_jax.errors import UserError
from smke_jax.search.cutoff import usual_scores
from smke_jax.search.photos import Left, Photo, PhotoFile, digest_of, photos_below
from smke_jax.search.store import Entry, Writer

SKIPPED = "skipped.jsonl"
COPIED_AT_ONCE = 1024


class Embeds(Protocol):
    """What is needed of `smke_jax.embedder.Embedder`."""

    def image_batches(self, images: Iterable, *, batch_size: int) -> Iterator: ...


@dataclasses.dataclass
class Counts:
    """What became of the photos: found = unchanged + moved + new + changed + the `left` that are no folders.

    moved: in another place than before, or copied; their embedding was taken over
    deleted: from the index, since they are no more there; moved ones count here, too
    kept: in the index, below folders that cannot be read now
    cleared: entries of photos that are gone, without which the index was written anew
    left: out, with its reason
    """

    found: int = 0
    unchanged: int = 0
    moved: int = 0
    new: int = 0
    changed: int = 0
    deleted: int = 0
    kept: int = 0
    cleared: int = 0
    left: list[Left] = dataclasses.field(default_factory=list)


def update(writer: Writer, embedder: Embeds, phrases: np.ndarray | None, *, batch_size: int) -> Counts:
    """Lists the photos of the index's folder, forgets those that are gone and appends those that are new or changed.

    Every batch is on disk before the next one is embedded, so that a kill loses little more than one.  Photos that were
    moved or copied keep their embedding, which the digest of the file finds.  At the end the writer compacts the index.

    Args:
      phrases: L2-normalised embeddings (P, D) of `cutoff.PHRASES`; None for a model without texts.

    Raises:
      UserError: there are no photos.
    """
    return _Update(writer, phrases).run(embedder, batch_size)


class _Update:
    def __init__(self, writer: Writer, phrases: np.ndarray | None):
        self.writer, self.index, self.phrases = writer, writer.index, phrases
        self.root = Path(self.index.about.photos)
        self.counts = Counts()
        self.numbers = {
            self.index.name(i): i for i in np.flatnonzero(self.index.live).tolist()
        }  # in the index, by name

    def run(self, embedder: Embeds, batch_size: int) -> Counts:
        todo = self.list_photos()
        self.forget_missing({photo.name for photo in todo})
        progress = Progress("photos", len(todo))
        fresh = self.take_over(todo)
        waiting: list[PhotoFile] = []  # handed to the embedder, which has not yet given them back

        def files() -> Iterator[PhotoFile]:
            for photo in fresh:
                waiting.append(PhotoFile(self.root, photo))
                yield waiting[-1]

        done = 0
        for found in embedder.image_batches(files(), batch_size=batch_size):
            count = len(found.embeddings) + len(found.skipped)
            reasons = {skip.position - done: skip.reason for skip in found.skipped}
            self.write([waiting.pop(0) for _ in range(count)], found.embeddings, reasons)
            done += count
            progress.update(len(todo) - len(fresh) + done)
        self.counts.cleared = self.writer.compact()
        _write_left(self.index.directory / SKIPPED, self.counts.left)
        return self.counts

    def list_photos(self) -> list[Photo]:
        """The photos that the index does not have as they are now; the others leave `numbers`."""
        counts, records, todo = self.counts, self.index.records, []
        for found in photos_below(self.root):
            if isinstance(found, Left):
                counts.left.append(found)
                counts.found += not found.is_folder
                continue
            counts.found += 1
            number = self.numbers.get(found.name)
            if number is None or (records["size"][number], records["mtime"][number]) != (found.size, found.mtime):
                todo.append(found)
            else:
                counts.unchanged += 1
                del self.numbers[found.name]
        if not todo and not counts.unchanged:
            first = [f" ({len(counts.left)} left out, the first, {x.name}: {x.reason})" for x in counts.left[:1]]
            kept = "; the index stays as it is" if self.numbers else ""
            raise UserError(f"no photos below {self.root}{''.join(first)}{kept}")
        return todo

    def forget_missing(self, there: set[str]) -> None:
        """Takes photos that are no more there out of the index; not those below folders that cannot be read now."""
        closed = {left.name for left in self.counts.left if left.is_folder}
        missing = {name: number for name, number in self.numbers.items() if name not in there}
        kept = {name for name in missing if closed.intersection(map(str, PurePath(name).parents))}
        gone = [number for name, number in missing.items() if name not in kept]
        self.counts.kept, self.counts.deleted = len(kept), len(gone)
        self.writer.forget(gone)

    def take_over(self, todo: list[Photo]) -> list[Photo]:
        """Gives photos whose bytes were embedded before, under another name or date, that embedding; returns the rest.

        Only files of a size that the index knows are read for that.
        """
        records = self.index.records
        sound = [i for i in range(len(records)) if i not in self.writer.damaged]
        sizes = set(records["size"][sound].tolist())
        by_digest = {records["digest"][i].tobytes(): i for i in sound}
        fresh, entries, instead = [], [], []
        for photo in todo:
            number = by_digest.get(self.digest(photo)) if photo.size in sizes else None
            if number is None or not self.index.is_sound(number):
                fresh.append(photo)
                continue
            old, before = records[number], self.numbers.get(photo.name)
            if before is None:
                self.counts.moved += 1
            else:
                same = self.index.records["digest"][before].tobytes() == old["digest"].tobytes()
                self.counts.unchanged += same  # only its date was
                self.counts.changed += not same
                instead.append(before)
            taken = int(old["taken"])
            entries.append(
                Entry(photo, old["digest"].tobytes(), taken, self.index.rows[number], old["typical"], old["spread"])
            )
            if len(entries) == COPIED_AT_ONCE:
                self.writer.append(entries, instead)
                entries, instead = [], []
        self.writer.append(entries, instead)
        return fresh

    def digest(self, photo: Photo) -> bytes | None:
        try:
            return digest_of(self.root / photo.name)
        except OSError:
            return None  # embedding gives the reason

    def write(self, files: Sequence[PhotoFile], embeddings: np.ndarray, reasons: dict[int, str]) -> None:
        """Appends what was embedded, and lists the others: `reasons` by place among `files`."""
        read = [file for place, file in enumerate(files) if place not in reasons]
        entries = []
        if read:
            rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
            nothing = np.full(len(rows), np.nan)
            typical, spread = (nothing, nothing) if self.phrases is None else usual_scores(rows, self.phrases)
            for file, *values in zip(read, rows, typical, spread, strict=True):
                if np.isfinite(values[0]).all():
                    entries.append(Entry(file.photo, file.digest, file.taken, *values))
                else:
                    self.counts.left.append(Left(file.photo.name, "its embedding is not finite"))
        self.counts.left += [Left(files[place].photo.name, reason) for place, reason in sorted(reasons.items())]
        # A photo that cannot be read any more is not what the index has of it.
        instead = [self.numbers[file.photo.name] for file in files if file.photo.name in self.numbers]
        self.writer.append(entries, instead)
        changed = sum(entry.photo.name in self.numbers for entry in entries)
        self.counts.changed += changed
        self.counts.new += len(entries) - changed


def _write_left(path: Path, left: Iterable[Left]) -> None:
    lines = (json.dumps({"name": x.name, "reason": x.reason}) + "\n" for x in left)
    atomic.write_text(path, "".join(lines))
