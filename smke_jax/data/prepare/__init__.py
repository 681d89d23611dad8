"""Public image-text datasets to one random-access format: one file per dataset.

A reader is a function (source folder, Options, Skips) -> {split: items}; it checks the layout at once and
may yield the items lazily. To add a dataset, write such a function, in a file of its name, and name it here.
"""

import importlib
from collections.abc import Callable

# What each one reads, for `smke prepare --help`, which opens none of them.
READERS = {
    "flickr8k": "the splits of Flickr8k by its lists of names, or by the Karpathy file",
    "flickr30k": "train, dev (val) and test by dataset_flickr30k.json or a csv with splits; else all as one split",
    "coco": "train (train + restval), dev (val) and test by the Karpathy file; without it, train and dev as published",
    "cc": "all *.tar below the folder; names or folders that say train, dev (val) or test make splits; else one split",
    "jsonl": "splits named by the files, as coco.val.jsonl or dev.jsonl; rows of one image become one record",
    "folder": "all photos below the folder; subfolders train, dev (or val, validation, …) and test become splits",
}


def reader_of(name: str) -> Callable:
    """The reader `name` of READERS."""
    return getattr(importlib.import_module(f"smke_jax.data.prepare.{name}"), name)
