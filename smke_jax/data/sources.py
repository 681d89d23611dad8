"""How a dataset is read: random access to images, and to their captions without the images."""

import abc
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax.data.damage import DamagedImage
from smke_jax.data.listing import Listing
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json

FORMAT_VERSION = 2  # of the prepared folder; raised when older folders can no longer be read


class Example(NamedTuple):
    """One image with its captions."""

    image: bytes | np.ndarray  # file bytes, or uint8 (H, W, 3)
    captions: tuple[str, ...]
    name: str


class Source(abc.ABC):
    """One split of a dataset: N images, each with at least one caption. Reading is thread-safe.

    Captions, names and ids are read without reading any image.

    Attributes:
      dataset: the dataset's name, such as 'flickr8k'.
      digest: hex sha256 that differs where what is read differs.
      names: N names.
      num_captions: int32 (N,), captions of each image.
      about: what was done to the images before they were stored, for the protocols of figures; '' for nothing.
    """

    about: str = ""
    dataset: str
    digest: str
    names: Sequence[str]
    num_captions: np.ndarray

    def __len__(self) -> int:
        return len(self.num_captions)

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Image `index` with its captions and its name.

        Raises:
          IndexError: `index` is not in 0 … N - 1.
          DamagedImage: what is stored can no longer be read.
        """

    @abc.abstractmethod
    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of image `index`."""

    @abc.abstractmethod
    def all_captions(self) -> list[tuple[str, ...]]:
        """The captions of each image, in order."""

    def counts(self) -> list[dict[str, int | str]]:
        """Of each data set in it: 'data', 'images', 'captions', and what else is known, such as 'skipped'."""
        return [{"data": self.dataset, "images": len(self), "captions": int(np.sum(self.num_captions))}]

    @functools.cached_property
    def image_ids(self) -> np.ndarray:
        """int64 (N,): the ids that the images have where they come from; the position where they have none."""
        return np.arange(len(self), dtype=np.int64)

    @functools.cached_property
    def repeats(self) -> np.ndarray:
        """int32 (N,): how often each image's rows come in an epoch."""
        return np.ones(len(self), np.int32)


class PreparedSource(Source):
    """One split of a folder written by `smke prepare`; made by `open_prepared`.

    A pickled source holds only the folder and the split and opens its files anew.

    Attributes:
      manifest: dict, the folder's manifest.json.
      split: name of the split.
      digest: hex sha256 of the split's names, captions and image bytes, in order.
      image_ids: int64 (N,).
    """

    def __init__(self, directory: str | Path, split: str):
        import tensorflow_datasets as tfds  # slow to import, and in-memory sources do without it
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        self.directory, self.split = Path(directory).absolute(), split
        self.manifest = _read_manifest(self.directory)
        self.dataset: str = self.manifest["dataset"]
        report = _split_report(self.directory, self.manifest, split)
        self.digest: str = report["digest"]
        if report.get("n_reencoded"):
            self.about = f"photos stored at {self.manifest['max_side']} px"
        self._listing = Listing(self.directory, split)
        self.num_captions, self.image_ids = self._listing.num_captions, self._listing.image_ids
        builder = tfds.builder_from_directory(self.directory)
        for path in builder.info.splits[split].filepaths:
            if not path.exists():
                raise UserError(f"{path} is missing: run `smke prepare` again")
        # Read as bytes and taken apart here, which takes a quarter of the time of tfds' own features.
        self._records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        self._parse, self._parse_error = tf_example_pb2.Example.FromString, DecodeError
        if not len(self._records) == len(self._listing) == report["n_images"]:
            raise UserError(f"{directory} does not hold what its manifest says: run `smke prepare` again")

    def counts(self) -> list[dict[str, int | str]]:
        report = _split_report(self.directory, self.manifest, self.split)
        known = {"skipped": "n_skipped", "captions dropped": "n_captions_dropped"}
        (own,) = super().counts()
        return [{**own, **{name: report[key] for name, key in known.items() if key in report}}]

    @functools.cached_property
    def names(self) -> list[str]:
        return [entry.name for entry in self._listing]

    def __getitem__(self, index: int) -> Example:
        entry = self._entry(index)
        try:
            fields = self._parse(self._records[index]).features.feature
        except (RuntimeError, ValueError, OSError, self._parse_error) as error:  # as for a block of a wrong checksum
            raise DamagedImage(entry.name, str(error).partition("(")[0].strip()) from error
        numbers, images = fields["image_id"].int64_list.value, fields["image"].bytes_list.value
        if len(numbers) != 1 or len(images) != 1:  # of a file that was cut short
            raise DamagedImage(entry.name, "the record here holds no image")
        if numbers[0] != entry.image_id:
            raise DamagedImage(entry.name, f"the record here is of image {numbers[0]}, not {entry.image_id}")
        return Example(images[0], entry.captions, entry.name)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._entry(index).captions

    def all_captions(self) -> list[tuple[str, ...]]:
        return [entry.captions for entry in self._listing]

    def _entry(self, index: int):
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r} has {len(self)} images, no number {index}")
        return self._listing[index]

    def __reduce__(self):
        return PreparedSource, (self.directory, self.split)

    def __repr__(self) -> str:
        # Without the folder's path: input pipelines compare this text when they resume on another machine.
        return f"PreparedSource({self.dataset}, {self.split}, {self.digest[:16]})"


def open_prepared(directory: str | Path, split: str) -> PreparedSource:
    """Opens one split of a prepared folder.

    Raises:
      UserError: the folder or the split is missing or empty; the line says what exists and what to run.
    """
    return PreparedSource(directory, split)


class ArraySource(Source):
    """A source over arrays in memory; it has no digest of its own.

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
        self._captions = [tuple(texts) for texts in captions]
        self.num_captions = np.array([len(texts) for texts in self._captions], np.int32)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], self._captions[index], self.names[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions[index]

    def all_captions(self) -> list[tuple[str, ...]]:
        return list(self._captions)


def _read_manifest(directory: Path) -> dict:
    path = directory / "manifest.json"
    if not directory.is_dir():
        raise UserError(f"no prepared dataset at {directory}: make it with `smke prepare DATASET --out=…`")
    if not path.is_file():
        raise UserError(f"{directory} has no manifest.json: it was not made by `smke prepare`")
    try:
        manifest = parse_json(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: run `smke prepare` again") from None
    if "kind" in manifest:
        raise UserError(f"{directory} holds prepared {manifest['kind']}, no images with captions: give another folder")
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


def has_split(directory: str | Path, split: str) -> bool:
    """Whether a prepared folder has images in that split."""
    report = _read_manifest(Path(directory))["splits"].get(split)
    return bool(report and report["n_images"])
