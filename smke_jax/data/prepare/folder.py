"""A folder of photos, each beside a text file of the same name with one caption per line."""

from collections.abc import Iterable
from pathlib import Path

from smke_jax.data.name_order import name_order
from smke_jax.data.prepare.items import IMAGE_SUFFIXES, Item, Options, Skips, numbered_lines
from smke_jax.errors import UserError

SPLITS = {"train": "train", "val": "dev", "dev": "dev", "test": "test"}


def folder(source: Path, options: Options, skips: Skips) -> dict[str, Iterable[Item]]:
    """All photos below the folder; its subfolders train, dev (or val) and test, if any, become splits."""
    divided = any((source / name).is_dir() for name in SPLITS)
    files = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
    photos = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not photos:
        raise UserError(f"{source} holds no photos: put pictures there, a .txt file of captions beside each")
    stems = {path.with_suffix("") for path in photos}
    for path in files:
        if path.suffix.lower() == ".txt" and path.with_suffix("") not in stems:
            skips.add(path.relative_to(source).as_posix(), "caption file without a photo")

    splits: dict[str, list[Item]] = {}
    for path in photos:
        name = path.relative_to(source).as_posix()
        split = SPLITS.get(name.partition("/")[0]) if divided else options.split
        if split is None:
            skips.add(name, "photo lies outside the folders train, dev and test", name=name)
            continue
        texts = path.with_suffix(".txt")
        captions = [line for _, line in numbered_lines(texts, skips)] if texts.is_file() else []
        splits.setdefault(split, []).append(Item(name, captions, path, name))
    return hold_out(splits, options.holdout)


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
