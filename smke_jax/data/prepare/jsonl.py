"""Lines of JSON, one pair each: the thesis' index files and anything like them.

A row holds `image_path` (absolute, or relative to the source folder) and `text` (a string, or the list of its
WordPiece tokens, as the thesis' files do) or `captions` (a list of strings). It may hold the image's `id`, a number.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from smke_jax.data.prepare.items import Item, Options, Skips, in_order_of_ids, numbered_lines, whole_number
from smke_jax.errors import UserError

SPLITS = {"train": "train", "val": "dev", "dev": "dev", "test": "test"}


def jsonl(source: Path, options: Options, skips: Skips) -> dict[str, Iterable[Item]]:
    """Splits named by the files, as coco.val.jsonl or dev.jsonl; rows of one image become one record."""
    paths = sorted(source.glob("*.jsonl"))
    if not paths:
        raise UserError(f"{source} holds no .jsonl file")
    splits: dict[str, dict[str, Item]] = {}
    for path in paths:
        split = SPLITS.get(path.stem.rpartition(".")[2], options.split)
        items = splits.setdefault(split, {})
        for where, line in numbered_lines(path, skips):
            if not line.strip():
                continue
            try:
                name, captions, image_id = _row(line)
            except ValueError as error:
                skips.add(where, str(error), split=split)
                continue
            items.setdefault(name, Item(name, [], source / name, where, image_id)).captions.extend(captions)
    return {split: in_order_of_ids(list(items.values())) for split, items in splits.items()}


def _row(line: str) -> tuple[str, list[str], int | None]:
    """One line -> (image_path, captions, id where it has one); ValueError says what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError:
        raise ValueError("line is not JSON") from None
    if not isinstance(row, dict) or not isinstance(row.get("image_path"), str):
        raise ValueError("row has no image_path")
    name, image_id = row["image_path"], whole_number(row.get("id"))
    captions = row.get("captions", row.get("text"))
    if isinstance(captions, str):
        return name, [captions], image_id
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError("row has neither a text (string or tokens) nor captions (strings)")
    return name, captions if "captions" in row else [join_wordpieces(captions)], image_id


def join_wordpieces(tokens: list[str]) -> str:
    """["a", "play", "##ing", "dog"] -> "a playing dog"; special tokens are left out."""
    words = [token for token in tokens if token not in ("[CLS]", "[SEP]", "[PAD]")]
    return " ".join(words).replace(" ##", "")
