"""Flickr30k with the Karpathy split, or from results.csv, which has no splits.

P. Young et al., "From Image Descriptions to Visual Denotations", TACL 2 (2014).
"""

from collections.abc import Iterable
from pathlib import Path

from smke_jax.data.prepare.items import Item, Options, Skips, find_path, numbered_lines, require_path
from smke_jax.data.prepare.karpathy import karpathy_items

HEADER = ["image_name", "comment_number", "comment"]


def flickr30k(source: Path, options: Options, skips: Skips) -> dict[str, Iterable[Item]]:
    """train, dev (val) and test of dataset_flickr30k.json; without it, all of results.csv as one split."""
    photos = require_path(source, "flickr30k-images", "flickr30k_images", "images")
    captions = require_path(source, "dataset_flickr30k.json", "results.csv")
    if captions.suffix == ".json":
        return karpathy_items(captions, lambda image: photos / image["filename"], skips)
    if (nested := find_path(photos, photos.name)) is not None:
        photos = nested  # a public archive holds flickr30k_images/flickr30k_images/
    return {options.split: _csv_items(captions, photos, skips)}


def _csv_items(path: Path, photos: Path, skips: Skips) -> list[Item]:
    items: dict[str, Item] = {}
    for where, line in numbered_lines(path, skips):
        fields = [field.strip() for field in line.split("|", maxsplit=2)]
        if fields == HEADER or not line.strip():
            continue
        if len(fields) < 3:  # one line of the public file lacks its second bar
            skips.add(where, "line is not of the form image_name| comment_number| comment")
            continue
        name, _, caption = fields
        items.setdefault(name, Item(name, [], photos / name, where)).captions.append(caption)
    return list(items.values())
