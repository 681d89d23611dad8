"""Flickr8k as first distributed, with the Karpathy split, or as a table of captions, which has no splits.

M. Hodosh, P. Young, J. Hockenmaier, "Framing Image Description as a Ranking Task", JAIR 47 (2013).
"""

import re
from collections.abc import Iterable
from pathlib import Path

from smke_jax.data.prepare.items import Files, Item, Options, Skips, numbered_lines
from smke_jax.data.prepare.karpathy import karpathy_items
from smke_jax.data.prepare.splits import SPLITS
from smke_jax.data.prepare.tables import caption_rows

SPLIT_LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
TOKENS = "Flickr8k.token.txt"
KARPATHY = "dataset_flickr8k.json"
TABLES = ("captions.txt", "captions.csv")
# The public file holds captions of a photo "….jpg.1" that does not exist: such lines must not match.
CAPTION_LINE = re.compile(r"(?P<name>[^\t#]+\.jpe?g)#\d+\t(?P<caption>.*)", re.IGNORECASE)


def flickr8k(source: Path, options: Options, skips: Skips) -> dict[str, Iterable[Item]]:
    """Items of every split whose list of names is there, in the order of that list; else of the Karpathy file's splits.

    Without either, all photos of the file of captions as one split.
    """
    files = Files(source)
    lists = {split: path for split, name in SPLIT_LISTS.items() if (path := files.find(name)) is not None}
    tokens, karpathy, table = files.find(TOKENS), files.find(KARPATHY), files.find(*TABLES)
    if karpathy is not None and not (lists and tokens):
        return karpathy_items(karpathy, files.picture, skips)
    if tokens is not None:
        captions = token_captions(tokens, skips)
    elif table is not None:
        (found,) = table_items(table, files, options.split, skips).values()
        captions = {item.name: item.captions for item in found}
    else:
        raise files.missing(TOKENS, KARPATHY, *TABLES)
    if not lists:
        path = tokens or table
        return {options.split: [Item(name, texts, files.picture(name), path.name) for name, texts in captions.items()]}
    splits = {}
    for split, path in lists.items():
        names = {line.strip(): where for where, line in numbered_lines(path, skips) if line.strip()}
        splits[split] = [
            Item(name, captions.get(name, []), files.picture(name), where) for name, where in names.items()
        ]
    return splits


def token_captions(path: Path, skips: Skips) -> dict[str, list[str]]:
    """{photo: its captions} of lines 'name.jpg#k<TAB>caption'."""
    captions: dict[str, list[str]] = {}
    for where, line in numbered_lines(path, skips):
        match = CAPTION_LINE.fullmatch(line)
        if match:
            captions.setdefault(match["name"], []).append(match["caption"])
        elif line.strip():
            skips.add(where, "line is not of the form name.jpg#k<TAB>caption")
    return captions


def table_items(path: Path, files: Files, split: str, skips: Skips) -> dict[str, list[Item]]:
    """Items of a table of captions by split; `split` is that of a table without such a column."""
    items: dict[str, dict[str, Item]] = {}
    for row in caption_rows(path, skips):
        name = SPLITS.get(row.split.casefold()) if row.split else split
        if name is None:
            skips.add(row.where, "row is of no known split", name=row.name)
            continue
        own = items.setdefault(name, {})
        own.setdefault(row.name, Item(row.name, [], files.picture(row.name), row.where)).captions.extend(row.captions)
    return {name: list(own.values()) for name, own in items.items()} or {split: []}
