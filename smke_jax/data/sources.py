"""How a prepared dataset is read: random access to images with their captions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax.errors import UserError

FORMAT_VERSION = 1  # of the prepared folder; raised when older folders can no longer be read


class Example(NamedTuple):
    """One image with its captions."""

    image: bytes | np.ndarray  # file bytes, or uint8 (H, W, 3)
    captions: tuple[str, ...]
    name: str


class PreparedSource:
    """One split of a folder written by `smke prepare`; made by `open_prepared`.

    Reading is thread-safe. A pickled source holds only the folder and the split and opens its files anew.

    Attributes:
      manifest: dict, the folder's manifest.json.
      dataset: its name, such as 'flickr8k'.
      split: name of the split.
      digest: hex sha256 of the split's names, captions and image bytes, in order.
      num_captions: int32 (N,), captions of each image.
    """

    def __init__(self, directory: str | Path, split: str):
        import tensorflow_datasets as tfds  # slow to import, and in-memory sources do without it

        self.directory, self.split = Path(directory).absolute(), split
        self.manifest = _read_manifest(self.directory)
        self.dataset: str = self.manifest["dataset"]
        report = _split_report(self.directory, self.manifest, split)
        self.digest: str = report["digest"]
        self.num_captions: np.ndarray = np.load(self.directory / f"{split}.num_captions.npy")
        builder = tfds.builder_from_directory(self.directory)
        for path in builder.info.splits[split].filepaths:
            if not path.exists():
                raise UserError(f"{path} is missing: run `smke prepare` again")
        self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        if not len(self._records) == len(self.num_captions) == report["n_images"]:
            raise UserError(f"{directory} does not hold what its manifest says: run `smke prepare` again")

    def __len__(self) -> int:
        return len(self.num_captions)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r} has {len(self)} images, no number {index}")
        record = self._records[index]
        captions = tuple(text.decode() for text in record["captions"])
        return Example(record["image"], captions, record["name"].decode())

    def __reduce__(self):
        return PreparedSource, (self.directory, self.split)

    def __repr__(self) -> str:
        # Without the folder's path: input pipelines compare this text when they resume on another machine.
        return f"PreparedSource({self.manifest['dataset']}, {self.split}, {self.digest[:16]})"


def open_prepared(directory: str | Path, split: str) -> PreparedSource:
    """Opens one split of a prepared folder.

    Raises:
      UserError: the folder or the split is missing or empty; the line says what exists and what to run.
    """
    return PreparedSource(directory, split)


class ArraySource:
    """The same interface over arrays in memory.

    Args:
      images: uint8 (N, H, W, 3).
      captions: N sequences of at least one caption.
      names: N names; row numbers when not given.
    """

    dataset = "arrays"

    def __init__(self, images: np.ndarray, captions: Sequence[Sequence[str]], names: Sequence[str] | None = None):
        names = [str(i) for i in range(len(images))] if names is None else names
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}")
        if not len(images) == len(captions) == len(names):
            raise ValueError(f"{len(images)} images, {len(captions)} caption lists, {len(names)} names")
        self.images, self.names = images, list(names)
        self.captions = [tuple(texts) for texts in captions]
        self.num_captions = np.array([len(texts) for texts in self.captions], np.int32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], self.captions[index], self.names[index])


def _read_manifest(directory: Path) -> dict:
    path = directory / "manifest.json"
    if not directory.is_dir():
        raise UserError(f"no prepared dataset at {directory}: make it with `smke prepare DATASET --out=…`")
    if not path.is_file():
        raise UserError(f"{directory} has no manifest.json: it was not made by `smke prepare`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: run `smke prepare` again") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{directory} has format {version}, not {FORMAT_VERSION}: run `smke prepare` again")
    return manifest


def _split_report(directory: Path, manifest: dict, split: str) -> dict:
    reports = manifest["splits"]
    usable = ", ".join(name for name, report in reports.items() if report["n_images"])
    if split not in reports:
        raise UserError(f"{directory} has no split {split!r}: it has {usable}; or run `smke prepare` again")
    if not reports[split]["n_images"]:
        raise UserError(f"split {split!r} of {directory} is empty (skipped.jsonl says why): use {usable}")
    return reports[split]
