"""Lines of JSON, one pair each: the thesis' index files and anything like them.

A row holds `image_path` (absolute, or relative to the source folder) and `text` (a string, or the list of its
WordPiece tokens, as the thesis' files do) or `captions` (a list of strings). It may hold the image's `id`, a number.
"""

from collections.abc import Iterable
from pathlib import Path

from smke_jax.data.prepare.items import Item, Options, Skips, in_order_of_ids, numbered_lines, whole_number
from smke_jax.data.prepare.splits import KNOWN, split_of
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json


def jsonl(source: Path, options: Options, skips: Skips) -> dict[str, Iterable[Item]]:
    """Splits named by the files, as coco.val.jsonl or dev.jsonl; rows of one image become one record.

    Where no file's name says a split, all are of `options.split`.  Where some do, the others are left out and named: a
    test set of another name must not end in training.
    """
    paths = sorted(path for path in source.glob("*.jsonl") if not path.name.startswith("."))
    if not paths:
        raise UserError(f"{source} holds no .jsonl file")
    said = {path: split_of(path.stem) for path in paths}
    divided = any(said.values())
    splits: dict[str, dict[str, Item]] = {}
    for path in paths:
        if divided and said[path] is None:
            skips.add(path.name, f"file's name says none of {KNOWN}, which others do: rename it")
            continue
        split = said[path] or options.split
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
        row = parse_json(line)
    except ValueError:
        raise ValueError("line is not JSON") from None
    if not isinstance(row, dict) or not isinstance(row.get("image_path"), str):
        raise ValueError("row has no image_path")
    name, image_id = row["image_path"], whole_number(row.get("id"))
    captions = row.get("captions", row.get("text"))
    if isinstance(captions, str):
        return name, [captions], image_id
    if "captions" in row and isinstance(captions, list):
        return name, captions, image_id  # what is no text among them is dropped and counted later
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError("row has neither a text (string or tokens) nor captions (strings)")
    return name, [join_wordpieces(captions)], image_id


def join_wordpieces(tokens: list[str]) -> str:
    """["a", "play", "##ing", "dog"] -> "a playing dog"; special tokens are left out."""
    words = [token for token in tokens if token not in ("[CLS]", "[SEP]", "[PAD]")]
    return " ".join(words).replace(" ##", "")
