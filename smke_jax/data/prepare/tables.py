"""Tables of captions: a row for each caption, or for each image with all of its captions, under a line of names."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from smke_jax.data.prepare.items import Skips, numbered_lines
from smke_jax.json_text import parse_json

IMAGE = ("image", "image_name", "filename", "file_name", "image_path")
MOST_LINES = 20  # of one caption in quotes
CAPTION = ("comment", "caption", "raw", "captions")


class Row(NamedTuple):
    """where: file:line; split: '' where the table has no such column."""

    where: str
    name: str
    captions: list
    split: str


def caption_rows(path: Path, skips: Skips) -> Iterator[Row]:
    """The rows of Kaggle's captions.txt (commas), Flickr30k's results.csv (bars), and the csv of hubs (lists as json).

    The text comes last in tables without quotes, and may hold the separator.
    """
    lines = numbered_lines(path, skips)
    header = next(((where, line) for where, line in lines if line.strip()), None)
    separator = "|" if header and "|" in header[1] else ","
    names = [name.strip().strip('"').casefold() for name in header[1].split(separator)] if header else []
    image, caption = (next((i for i, name in enumerate(names) if name in known), None) for known in (IMAGE, CAPTION))
    if image is None or caption is None:
        skips.add(path.name, "table has no column for images or none for captions")
        return
    split = names.index("split") if "split" in names else None
    for where, fields in _fields(lines, separator):
        if len(fields) > len(names) and caption == len(names) - 1:
            fields = [*fields[:caption], separator.join(fields[caption:])]
        if len(fields) < len(names):  # one line of the public file lacks its second bar
            skips.add(where, f"line has fewer than {len(names)} fields")
            continue
        yield Row(
            where, fields[image].strip(), _captions(fields[caption]),
            "" if split is None else fields[split].strip(),
        )  # fmt: skip


def _fields(lines: Iterator[tuple[str, str]], separator: str) -> Iterator[tuple[str, list[str]]]:
    """The fields of each row; a quoted field may hold line ends, as csv has it."""
    if separator == "|":
        yield from ((where, line.split("|")) for where, line in lines if line.strip())
        return
    waiting: list[tuple[str, str]] = []
    while (first := waiting.pop(0) if waiting else next(lines, None)) is not None:
        where, line = first
        if not line.strip():
            continue
        text, taken = line, []
        while _is_open(text) and len(taken) < MOST_LINES:
            more = waiting.pop(0) if waiting else next(lines, None)
            if more is None:
                break
            taken.append(more)
            text += "\n" + more[1]
        if _is_open(text):  # nobody closes the quote: it is a letter of the caption, and the next lines are their own
            waiting[:0] = taken
            yield where, line.split(separator)
        else:
            yield where, next(csv.reader(io.StringIO(text, newline=""), delimiter=separator))


def _is_open(text: str) -> bool:
    """Whether a quoted field that begins in `text` does not end there."""
    try:
        next(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def _captions(text: str) -> list:
    try:
        value = parse_json(text) if text.lstrip().startswith("[") else text
    except ValueError:
        value = text
    return value if isinstance(value, list) else [value]
