"""Running text to rows of tokens of one length, for the distillation of a text encoder (spec 2, 24)."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from smke_jax import atomic
from smke_jax.data.clip_tokenizer import load_vocabulary
from smke_jax.data.prepare.build import check_free, is_disk_full
from smke_jax.data.prepare.items import Skips, numbered_lines
from smke_jax.data.progress import Progress
from smke_jax.data.texts import ENDS, FORMAT_VERSION, KIND, MANIFEST, TOKENIZER, dtype_of, special_of, whole_lines
from smke_jax.data.tokenizer import Tokenizer
from smke_jax.errors import UserError

CHUNK = 1000  # lines that are cut into tokens at a time
RULE = "---"  # a line that separates texts in OpenWebText


def prepare_text(
    splits: Mapping[str, Sequence[Path]],
    out: Path,
    *,
    tokenizer: Path,
    skips: Skips,
    length: int = 256,
    rows: str = "lines",
    holdout: int = 0,
    dataset: str = "text",
    created_by: dict | None = None,
) -> dict:
    """Writes the folder that `smke_jax.data.texts` reads, whole or not at all.

    A line that is no text, such as one that is neither UTF-8 nor in a Western alphabet, is skipped and counted.  Lines
    that are empty, or '---', are left out and counted too.

    Args:
      splits: {name: text files}, one line after another.  No row has text of two splits.
      out: folder to create; must not exist, or be empty.
      tokenizer: folder with vocab.txt or tokenizer.json; it is copied into `out`.
      skips: book of what is left out; it is added to.
      length: tokens of a row, [CLS] and [SEP] included.
      rows: a key of ROWS.
      holdout: the last rows of the split 'train' become the split 'dev', so many of them.
      dataset: name that goes into the manifest.
      created_by: options of the command, recorded in the manifest.

    Returns:
      The manifest, as written to manifest.json.

    Raises:
      UserError: `out` is taken, a file is missing, no line of a split is text, too few rows to hold out, a full disk.
    """
    check_free(out)
    for path in (path for files in splits.values() for path in files):
        if not path.is_file():
            raise UserError(f"{path} is no file: give text files, one text or paragraph a line")
    words = load_vocabulary(tokenizer)
    if length < 3:
        raise UserError(f"a row of {length} tokens has no room beside [CLS] and [SEP]: give --length=3 or more")
    try:
        with atomic.replacing(out) as partial:
            partial.mkdir()
            counts = {}
            for split, files in splits.items():
                lines = _Lines(files, skips, split)
                made = ROWS[rows](_tokens(lines, words), length - 2)
                counts[split] = _write(partial, split, made, words) | {"lines": lines.used, "blank_lines": lines.blank}
                if not counts[split]["rows"]:
                    reason, count, where = (skips.reasons() or [("they are empty", len(files), files[0].name)])[0]
                    raise UserError(f"{_named(files)} holds no line of text ({count}x, first at {where}: {reason})")
            if holdout:
                counts = _held_out(partial, counts, holdout, words)
            words.save(partial / TOKENIZER)
            manifest = {
                "dataset": dataset, "kind": KIND, "format_version": FORMAT_VERSION, "created_by": created_by or {},
                "length": length, "rows": rows, "vocab_size": words.vocab_size, "tokenizer": words.digest,
                "special": special_of(words), "splits": counts,
                "n_skipped": len(skips.entries),
                "skip_reasons": {reason: count for reason, count, _ in skips.reasons()}, "notes": dict(skips.notes),
            }  # fmt: skip
            skips.write(partial / "skipped.jsonl")
            atomic.write_text(partial / MANIFEST, json.dumps(manifest, indent=2) + "\n")
            check_free(out)  # hours may have passed
            if out.is_dir():  # an empty one: a folder only takes a place that is free
                out.rmdir()
    except OSError as error:
        if is_disk_full(error):
            raise UserError(f"the disk of {out} is full: free some space or choose another --out") from error
        raise
    return manifest


def _named(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"none of {len(files)} files ({files[0]}, …)"


class _Lines:
    """The lines of text of some files, stripped; those that are no text are counted."""

    def __init__(self, files: Sequence[Path], skips: Skips, split: str):
        self._files, self._skips, self._split = files, skips, split
        self.used = self.blank = 0

    def __iter__(self) -> Iterator[str]:
        progress = Progress(self._split, 0)
        for path in self._files:
            before = self.used
            for where, line in numbered_lines(path, self._skips):
                text = line.strip()
                if "\0" in text:
                    self._skips.add(where, "line holds a zero byte", split=self._split)
                elif not text or text == RULE:
                    self.blank += 1
                else:
                    self.used += 1
                    progress.update(self.used)
                    yield text
            if self.used == before:
                self._skips.add(path.name, "file holds no line of text", split=self._split)


def _tokens(lines: Iterable[str], words: Tokenizer) -> Iterator[list[int]]:
    """The tokens of every line that has any."""
    chunk: list[str] = []
    for line in lines:
        chunk.append(line)
        if len(chunk) == CHUNK:
            yield from filter(None, words.encode_parts(chunk))
            chunk = []
    yield from filter(None, words.encode_parts(chunk))


def running(lines: Iterable[list[int]], room: int) -> Iterator[list[int]]:
    """Rows of exactly `room` tokens, cut wherever they are full; only the last one is shorter.  Nothing is padded."""
    row: list[int] = []
    for line in lines:
        start = room - len(row)  # of the line, where the row that is open is full
        row = row + line[:start]
        while len(row) == room:
            yield row
            row = line[start : start + room]
            start += room
    if row:
        yield row


ROWS: dict[str, Callable[[Iterable[list[int]], int], Iterator[list[int]]]] = {"lines": whole_lines, "running": running}


def _write(folder: Path, split: str, rows: Iterable[list[int]], words: Tokenizer) -> dict:
    """Writes both files of a split; returns its part of the manifest."""
    digest, count, end = hashlib.sha256(words.digest.encode()), 0, 0
    dtype = dtype_of(words.vocab_size)
    with open(folder / f"{split}.tokens", "wb") as tokens, open(folder / f"{split}.ends", "wb") as ends:
        for row in rows:
            ids, end, count = np.asarray(row, dtype).tobytes(), end + len(row), count + 1
            place = np.asarray(end, ENDS).tobytes()
            tokens.write(ids)
            ends.write(place)
            digest.update(ids + place)
    return {"rows": count, "tokens": end, "digest": digest.hexdigest()}


def _held_out(folder: Path, counts: dict, holdout: int, words: Tokenizer) -> dict:
    """The last rows of 'train' as the split 'dev'."""
    own = counts["train"]
    if own["rows"] <= holdout:
        raise UserError(f"the text has {own['rows']} rows: --holdout={holdout} leaves none to train on")
    dtype = dtype_of(words.vocab_size)
    ends = np.fromfile(folder / "train.ends", ENDS)
    ids = np.memmap(folder / "train.tokens", dtype, mode="r")
    starts = np.concatenate([[0], ends[:-1]])
    made, kept = {}, len(ends) - holdout
    for split, part in (("dev", slice(kept, None)), ("train", slice(0, kept))):
        # 'train' is written anew, beside itself: its digest is that of its own rows.
        rows = (ids[a:b].tolist() for a, b in zip(starts[part], ends[part], strict=True))
        made[split] = _write(folder, f"{split}.new", rows, words)
    for split in made:
        for kind in ("tokens", "ends"):
            (folder / f"{split}.new.{kind}").replace(folder / f"{split}.{kind}")
    lines = {name: own[name] for name in ("lines", "blank_lines")}
    return counts | {"train": made["train"] | lines, "dev": made["dev"]}
