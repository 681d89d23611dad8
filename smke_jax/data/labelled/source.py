"""One split of labelled images, as a source of the pipeline."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from smke_jax.data.damage import DamagedImage
from smke_jax.data.name_order import name_order
from smke_jax.data.pipeline import pixels
from smke_jax.data.sources import Example, Source
from smke_jax.errors import UserError

log = logging.getLogger("smke_jax")


class Rows(NamedTuple):
    """Images of one split as a layout finds them; none of them is opened.

    names:  N, the same on every machine
    labels: int32 (N,)
    read:   position -> file bytes, or uint8 (H, W, 3)
    stamps: N texts that differ where the images differ, such as sizes of files
    """

    names: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], bytes | np.ndarray]
    stamps: Sequence[str]

    def chosen(self, places: np.ndarray) -> "Rows":
        """Those at `places`, in that order."""
        places = [int(i) for i in places]
        return Rows(
            [self.names[i] for i in places], self.labels[places], lambda i: self.read(places[i]),
            [self.stamps[i] for i in places],
        )  # fmt: skip


def held_back(rows: Rows, classes: Sequence[str], share: float) -> tuple[Rows, Rows]:
    """(rows to train on, rows held back): `share` of each class, always the same ones, by a digest of their names.

    A class keeps one image for training in any case; such classes are named in a warning.
    """
    lone, kept, back = [], [], []
    for label, name in enumerate(classes):
        own = np.flatnonzero(rows.labels == label)
        order = own[name_order(rows.names[i] for i in own)]
        count = min(max(1, round(share * len(own))), len(own) - 1)
        lone += [name] if len(own) == 1 else []
        back.append(order[:count])
        kept.append(order[count:])
    if lone:
        log.warning(
            "%s with one image, which is trained on, and none to evaluate: %s",
            counted(len(lone), "class", "classes"), _few(lone),
        )  # fmt: skip
    return tuple(rows.chosen(np.sort(np.concatenate(part))) for part in (kept, back))


class LabelledSource(Source):
    """Labelled images of one split; the caption of an image is the name of its class.

    in_memory: every image is decoded at once and kept.  An image that cannot be decoded is left out and counted.
    Without it, training skips and counts such an image, and an evaluation on the run's own task ends at it.

    Attributes:
      classes: C names.
      labels: int32 (N,), the number of each image's class.
      digest: hex sha256 of names, labels and stamps.
    """

    def __init__(self, dataset: str, split: str, classes: Sequence[str], rows: Rows, *, in_memory: bool = False):
        if not len(rows.names):
            raise UserError(f"split {split!r} of {dataset} has no images: choose another one, or more to hold back")
        self.dataset, self.split, self._skipped = dataset, split, 0
        # The name of a folder need not be UTF-8, as files that hold the names of classes are.
        self.classes = tuple(name.encode("utf-8", "replace").decode() for name in classes)
        self._images: list[np.ndarray] | None = None
        if in_memory:
            rows = self._decoded(rows)
        self.names, self.labels, self._read = list(rows.names), rows.labels, rows.read
        self.num_captions = np.ones(len(self.names), np.int32)
        lines = (f"{n}\t{y}\t{s}\n" for n, y, s in zip(self.names, self.labels.tolist(), rows.stamps, strict=True))
        found = hashlib.sha256("\t".join(self.classes).encode("utf-8", "backslashreplace"))
        for line in lines:
            found.update(line.encode("utf-8", "backslashreplace"))
        self.digest = found.hexdigest()

    def _decoded(self, rows: Rows) -> Rows:
        sound, images, first = [], [], ""
        for i, name in enumerate(rows.names):
            try:
                images.append(pixels(Example(_attempt(rows.read, i, name), (), name)))
                sound.append(i)
            except DamagedImage as error:
                first = first or f"{name!r} ({error.reason})"
        self._skipped = len(rows.names) - len(sound)
        if self._skipped:
            self.tell_unread(self._skipped, len(rows.names), first)
        return rows.chosen(np.array(sound))._replace(read=images.__getitem__)

    def tell_unread(self, count: int, total: int, first: str) -> None:
        """Warns that `count` of `total` images are left out, of which `first` is one; UserError where none is left."""
        if count == total:
            raise UserError(f"no image of split {self.split!r} of {self.dataset} can be read; the first is {first}")
        log.warning(
            "%d of the %d images of %s %s cannot be read and are left out, the first is %s",
            count, total, self.dataset, self.split, first,
        )  # fmt: skip

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r} has {len(self)} images, no number {index}")
        return Example(_attempt(self._read, index, self.names[index]), self.captions(index), self.names[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return (self.classes[self.labels[index]],)

    def all_captions(self) -> list[tuple[str, ...]]:
        return [self.captions(i) for i in range(len(self))]

    def counts(self) -> list[dict[str, int | str]]:
        counts = {"data": self.dataset, "images": len(self), "classes": len(self.classes)}
        return [counts | ({"skipped": self._skipped} if self._skipped else {})]

    def whole(self, index: int) -> np.ndarray:
        """Image `index` as uint8 (H, W, 3); UserError for one that cannot be read."""
        try:
            return pixels(self[index])
        except DamagedImage as error:
            raise UserError(
                f"image {error.name!r} of {self.dataset} {self.split} cannot be read ({error.reason}): mend or remove "
                "it, or set in_memory=True, which leaves such out and counts them"
            ) from None

    def __repr__(self) -> str:
        return f"LabelledSource({self.dataset}, {self.split}, {self.digest[:16]})"


def _attempt(read: Callable, index: int, name: str) -> bytes | np.ndarray:
    try:
        return read(index)
    except OSError as error:
        raise DamagedImage(name, error.strerror or "cannot be opened") from None


def counted(count: int, one: str, more: str = "") -> str:
    """'1 photo', '2 photos', or `more` in place of a plural by an s."""
    return f"{count} {one if count == 1 else more or one + 's'}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
