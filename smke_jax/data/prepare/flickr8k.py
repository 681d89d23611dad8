"""Flickr8k as distributed: photos, one caption file, one list of names per split.

M. Hodosh, P. Young, J. Hockenmaier, "Framing Image Description as a Ranking Task", JAIR 47 (2013).
"""

import re
from collections.abc import Iterable
from pathlib import Path

from smke_jax.data.prepare.items import Item, Options, Skips, find_path, numbered_lines, require_path
from smke_jax.errors import UserError

SPLIT_LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
# The public file holds captions of a photo "….jpg.1" that does not exist: such lines must not match.
CAPTION_LINE = re.compile(r"(?P<name>[^\t#]+\.jpe?g)#\d+\t(?P<caption>.*)", re.IGNORECASE)


def flickr8k(source: Path, options: Options, skips: Skips) -> dict[str, Iterable[Item]]:
    """Items of every split whose list of names is there, in the order of that list."""
    photos = require_path(source, "Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
    captions: dict[str, list[str]] = {}
    for where, line in numbered_lines(require_path(source, "Flickr8k.token.txt"), skips):
        match = CAPTION_LINE.fullmatch(line)
        if match:
            captions.setdefault(match["name"], []).append(match["caption"])
        elif line.strip():
            skips.add(where, "line is not of the form name.jpg#k<TAB>caption")

    lists = {split: find_path(source, name) for split, name in SPLIT_LISTS.items()}
    if not any(lists.values()):
        raise UserError(f"{source} has none of the split lists {', '.join(SPLIT_LISTS.values())}")
    splits = {}
    for split, path in lists.items():
        if path is not None:
            names = {line.strip(): where for where, line in numbered_lines(path, skips) if line.strip()}
            splits[split] = [Item(name, captions.get(name, []), photos / name, where) for name, where in names.items()]
    return splits
