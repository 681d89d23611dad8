"""Writes records as a tensorflow-datasets folder in array_record files, as a stream and without TensorFlow.

`tfds.core.GeneratorBasedBuilder` gathers a whole split before it writes and needs TensorFlow beyond 1 GiB, so
the shards are written here and declared to tfds with its `folder_dataset` interface.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

DATASET_NAME = "image_text"
SHARD_BYTES = 256 << 20


def features() -> tfds.features.FeaturesDict:
    """The record: the image's file bytes, and the id under which the listing has its name and captions."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": tfds.features.Scalar(np.int64),
        }
    )


class SplitWriter:
    """Writes one split in order, starting a new file every `shard_bytes`.

    lengths, num_bytes: of the shards that an interrupted run has closed, behind which this one goes on
    closed: called with both whenever all shards so far are closed and on the disk
    """

    def __init__(
        self, directory: Path, split: str, *, lengths: Sequence[int] = (), num_bytes: int = 0,
        closed: Callable[[list[int], int], None], shard_bytes: int = SHARD_BYTES,
    ):  # fmt: skip
        self.directory, self.split, self.shard_bytes = directory, split, shard_bytes
        self.lengths = list(lengths)
        self.num_bytes = num_bytes
        self._closed = closed
        self._features = features()
        self._writer: ArrayRecordWriter | None = None
        self._room = 0

    def write(self, record: dict) -> None:
        data = self._features.serialize_example(record)
        if self._writer is None or self._room < len(data):
            self._next_shard()
        # Photos are compressed already: a second compression would cost time at every read.
        self._writer.write(data)
        self._room -= len(data)
        self.num_bytes += len(data)
        self.lengths[-1] += 1

    def close(self) -> tfds.core.SplitInfo | None:
        """Ends the split and gives the files their final names; None when nothing was written."""
        self._close_shard()
        if not self.lengths:
            return None
        for index in range(len(self.lengths)):
            if self._open_path(index).exists():  # else it was renamed before an interruption
                self._open_path(index).rename(self._stem(f"{index:05d}-of-{len(self.lengths):05d}"))
        template = tfds.core.ShardedFileTemplate(
            data_dir=self.directory,
            dataset_name=DATASET_NAME,
            split=self.split,
            filetype_suffix="array_record",
        )
        return tfds.core.SplitInfo(self.split, self.lengths, self.num_bytes, template)

    def _next_shard(self) -> None:
        self._close_shard()
        self._writer = ArrayRecordWriter(str(self._open_path(len(self.lengths))), "group_size:1,uncompressed")
        self._room = self.shard_bytes
        self.lengths.append(0)

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            with open(self._open_path(len(self.lengths) - 1), "rb") as file:
                os.fsync(file.fileno())
        self._closed(self.lengths, self.num_bytes)

    def _open_path(self, index: int) -> Path:
        return self._stem(f"{index:05d}.open")  # how many there will be is known only at the end

    def _stem(self, ending: str) -> Path:
        return self.directory / f"{DATASET_NAME}-{self.split}.array_record-{ending}"


def write_metadata(directory: Path, splits: list[tfds.core.SplitInfo]) -> None:
    """Declares the written shards, so that `tfds.builder_from_directory(directory)` reads them."""
    tfds.folder_dataset.write_metadata(
        data_dir=directory, features=features(), split_infos=splits, version="1.0.0", check_data=False,
        description="Image-text pairs prepared by smke_jax; names and captions are in *.listing.jsonl.",
        disable_shuffling=True,
    )  # fmt: skip
