"""Flickr30k with the Karpathy split, with that of the hubs' csv, or from a table of captions, which has no splits.

P. Young et al., "From Image Descriptions to Visual Denotations", TACL 2 (2014).
"""

from collections.abc import Iterable
from pathlib import Path

from smke_jax.data.prepare.flickr8k import table_items, token_captions
from smke_jax.data.prepare.items import Files, Item, Options, Skips
from smke_jax.data.prepare.karpathy import karpathy_items

KARPATHY = "dataset_flickr30k.json"
TABLES = ("flickr_annotations_30k.csv", "results.csv", "captions.txt", "captions.csv")
TOKENS = ("results_20130124.token", "results_20130124.token.txt")


def flickr30k(source: Path, options: Options, skips: Skips) -> dict[str, Iterable[Item]]:
    """train, dev (val) and test of dataset_flickr30k.json or of a csv with splits; else all photos as one split."""
    files = Files(source)
    if (captions := files.find(KARPATHY)) is not None:
        return karpathy_items(captions, files.picture, skips)
    if (captions := files.find(*TABLES)) is not None:
        return table_items(captions, files, options.split, skips)
    if (captions := files.find(*TOKENS)) is not None:
        found = token_captions(captions, skips).items()
        return {options.split: [Item(name, texts, files.picture(name), captions.name) for name, texts in found]}
    raise files.missing(KARPATHY, *TABLES, *TOKENS)
