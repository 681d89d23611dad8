"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their binary files."""

import hashlib
from pathlib import Path

import numpy as np

from smke_jax.data.labelled.source import Rows
from smke_jax.errors import UserError

SIDE = 32
PIXELS = 3 * SIDE * SIDE  # of a record: three planes, row by row

# {classes: (bytes of labels before the pixels, of which the last counts, files of each split, file of the names)}
FORMS = {
    10: (1, {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}, "batches.meta.txt"),
    100: (2, {"train": ["train.bin"], "test": ["test.bin"]}, "fine_label_names.txt"),
}


def cifar(root: Path, classes: int) -> tuple[list[str], dict[str, Rows]]:
    """(names of the classes, {'train' and 'test': Rows}) of CIFAR-10 or CIFAR-100; of the latter the fine classes.

    root: the folder of the binary files, or one above it.  Raises UserError for a missing file, for one that is cut
    short, and for a label out of range.
    """
    before, files, meta = FORMS[classes]
    inner = f"cifar-{classes}-{'batches-bin' if classes == 10 else 'binary'}"
    folder = next((x for x in (root, root / inner) if (x / files["test"][0]).is_file()), None)
    if folder is None:
        raise UserError(f"{root} has no {files['test'][0]}: give the folder of CIFAR-{classes}'s binary version")
    if not (folder / meta).is_file():
        raise UserError(f"{folder / meta} is missing: unpack CIFAR-{classes} again")
    names = [line.strip() for line in (folder / meta).read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != classes:
        raise UserError(f"{folder / meta} names {len(names)} classes, not {classes}: unpack CIFAR-{classes} again")
    return names, {split: _rows(split, folder, own, before, classes) for split, own in files.items()}


def _rows(split: str, folder: Path, files: list[str], before: int, classes: int) -> Rows:
    records = np.concatenate([_records(folder / name, before, classes) for name in files])
    labels = records[:, before - 1].astype(np.int32)
    images = records[:, before:].reshape(-1, 3, SIDE, SIDE)

    def stamp(record: np.ndarray) -> str:
        return hashlib.sha256(record).hexdigest()[:16]

    names = [f"{split}/{i}" for i in range(len(records))]
    return Rows(
        names, labels, lambda i: np.ascontiguousarray(images[i].transpose(1, 2, 0)), [stamp(x) for x in records]
    )


def _records(path: Path, before: int, classes: int) -> np.ndarray:
    """The records of one file, uint8 (N, before + PIXELS)."""
    if not path.is_file():
        raise UserError(f"{path} is missing: unpack CIFAR-{classes} again")
    data = np.fromfile(path, np.uint8)
    size = before + PIXELS
    if not len(data) or len(data) % size:
        raise UserError(
            f"{path} is cut short: {len(data):,} bytes are no whole number of records of {size}; fetch it anew"
        )
    records = data.reshape(-1, size)
    wrong = np.flatnonzero(records[:, before - 1] >= classes)
    if len(wrong):
        label = records[wrong[0], before - 1]
        raise UserError(f"{path}: record {wrong[0]} has the label {label}, and CIFAR-{classes} has {classes} classes")
    return records
