"""Public image-text datasets to one random-access format: one file per dataset.

A reader is a function (source folder, Options, Skips) -> {split: items}; it checks the layout at once and
may yield the items lazily. To add a dataset, write such a function and name it here.
"""

from smke_jax.data.prepare.cc import cc
from smke_jax.data.prepare.coco import coco
from smke_jax.data.prepare.flickr8k import flickr8k
from smke_jax.data.prepare.flickr30k import flickr30k
from smke_jax.data.prepare.folder import folder
from smke_jax.data.prepare.jsonl import jsonl

PREPARERS = {
    "flickr8k": flickr8k,
    "flickr30k": flickr30k,
    "coco": coco,
    "cc": cc,
    "jsonl": jsonl,
    "folder": folder,
}
