"""A folder of photos, each beside a text file of the same name with one caption per line."""

from collections.abc import Iterable
from pathlib import Path

from smke_jax.data.name_order import name_order
from smke_jax.data.prepare.items import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    Item,
    Options,
    Skips,
    files_below,
    numbered_lines,
)
from smke_jax.data.prepare.splits import KNOWN, split_of_folder
from smke_jax.errors import UserError

DROPPINGS = frozenset(("thumbs.db", "desktop.ini"))  # of Windows; those of other systems begin with a dot


def folder(source: Path, options: Options, skips: Skips) -> dict[str, Iterable[Item]]:
    """All photos below the folder; its subfolders train, dev (or val, validation, …) and test, if any, become splits.

    The captions of a.jpg lie in a.txt or a.jpg.txt, or end in .caption or .text.
    """
    files = files_below(source)
    photos = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not photos:
        raise UserError(f"{source} holds no photos: put pictures there, a .txt file of captions beside each")
    root = _root(source)
    divided = any(path.is_dir() and split_of_folder(path.name) for path in root.iterdir())
    # By the path without .txt: with and without the photo's own suffix.
    texts: dict[Path, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in CAPTION_SUFFIXES:
            texts.setdefault(path.with_suffix(""), []).append(path)
    used: set[Path] = set()

    splits: dict[str, list[Item]] = {}
    for path in photos:
        name = path.relative_to(source).as_posix()
        own = [text for key in (path, path.with_suffix("")) for text in texts.get(key, ())]
        used.update(own)
        split = split_of_folder(path.relative_to(root).parts[0]) if divided else options.split
        if split is None:
            skips.add(name, f"photo lies outside the folders {KNOWN}", name=name)
            continue
        captions = [line for text in own for _, line in numbered_lines(text, skips)]
        splits.setdefault(split, []).append(Item(name, captions, path, name))
    for path in sorted(set(files) - set(photos) - used):
        if path.name.casefold() not in DROPPINGS:
            is_text = path.suffix.lower() in CAPTION_SUFFIXES
            reason = "caption file without a photo" if is_text else "file is neither a photo nor captions of one"
            skips.add(path.relative_to(source).as_posix(), reason)
    return hold_out(splits, options.holdout)


def _root(source: Path) -> Path:
    """Where the folders of splits are looked for: below the folders that hold one folder and nothing else."""
    while True:
        inner = [path for path in source.iterdir() if not path.name.startswith(".")]
        if len(inner) != 1 or not inner[0].is_dir() or split_of_folder(inner[0].name):
            return source
        source = inner[0]


def hold_out(splits: dict[str, list[Item]], count: int) -> dict[str, list[Item]]:
    """Moves `count` items from `train` to `dev`, always the same: those whose names hash lowest."""
    if count == 0:
        return splits
    train = splits.get("train", [])
    if "dev" in splits:
        raise UserError("the data already has a dev split: leave out --holdout")
    if count >= len(train):
        raise UserError(f"--holdout={count} leaves nothing of the {len(train)} images: choose fewer")
    held = set(name_order(item.name for item in train)[:count].tolist())
    return {
        **splits,
        "train": [item for i, item in enumerate(train) if i not in held],
        "dev": [item for i, item in enumerate(train) if i in held],
    }
