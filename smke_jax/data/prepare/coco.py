"""COCO captions in the Karpathy split: dataset_coco.json beside train2014/ and val2014/.

T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014.
"""

from collections.abc import Iterable
from pathlib import Path

from smke_jax.data.prepare.items import Item, Options, Skips, require_path
from smke_jax.data.prepare.karpathy import karpathy_items


def coco(source: Path, options: Options, skips: Skips) -> dict[str, Iterable[Item]]:
    """train (train + restval), dev (val) and test; names (COCO_val2014_000000391895.jpg) keep the id."""
    photos = require_path(source, "val2014", "train2014").parent
    captions = require_path(source, "dataset_coco.json")
    return karpathy_items(captions, lambda image: photos / image["filepath"] / image["filename"], skips)
