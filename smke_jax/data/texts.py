"""Running text as rows of tokens, from the folder that `smke prepare text` writes: any row is read by itself.

A split is two files.  SPLIT.tokens holds the ids of all rows one after another, without [CLS] and [SEP], as 2 bytes
each where the vocabulary allows it, else 4.  SPLIT.ends holds where each row ends, as 8 bytes.  Bytes are
little-endian.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from smke_jax.data.pipeline import array_batches
from smke_jax.data.tokenizer import Tokenizer
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json

FORMAT_VERSION = 1
KIND = "text"  # in the manifest, where folders of images have none
MANIFEST, TOKENIZER = "manifest.json", "tokenizer"
ENDS = np.dtype("<i8")


def dtype_of(vocab_size: int) -> np.dtype:
    """In which ids below `vocab_size` are stored."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def whole_lines(lines: Iterable[list[int]], room: int) -> Iterator[list[int]]:
    """Rows of at most `room` tokens: as many whole lines as fit, one after another.

    A line that does not fit in a row is cut into rows of its own; what is left of it is a short row (spec 24).
    """
    row: list[int] = []
    for line in lines:
        if row and len(row) + len(line) > room:
            yield row
            row = []
        if len(line) >= room:
            yield from (line[i : i + room] for i in range(0, len(line), room))
        else:
            row = row + line
    if row:
        yield row


@dataclasses.dataclass(frozen=True, eq=False)
class TextRows:
    """One split of running text.  Reading is thread-safe.

    name:    of the dataset
    split:   of it
    length:  tokens of the longest row that there can be, [CLS] and [SEP] included
    special: the ids 'start', 'end' and 'pad'
    digest:  hex sha256 of the rows
    ids:     of all rows, one after another, without [CLS] and [SEP]
    ends:    (rows,), where each row ends in `ids`
    """

    name: str
    split: str
    length: int
    special: dict[str, int]
    digest: str
    ids: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __repr__(self) -> str:
        return f"TextRows({self.name}, {self.split})"

    def parts(self, row: int) -> np.ndarray:
        """The ids of a row without [CLS] and [SEP]."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self!r} has {len(self)} rows, no number {row}")
        return self.ids[self.ends[row - 1] if row else 0 : self.ends[row]]


def rows_of(lines: Iterable[list[int]], words: Tokenizer, *, name: str, split: str, length: int) -> TextRows:
    """Rows in memory, of texts that are short: `lines` are those of `parts`."""
    lines = list(lines)
    ids = np.concatenate([np.asarray(line, dtype_of(words.vocab_size)) for line in lines])
    ends = np.cumsum([len(line) for line in lines]).astype(ENDS)
    digest = hashlib.sha256(words.digest.encode() + ids.tobytes() + ends.tobytes()).hexdigest()
    return TextRows(name, split, length, special_of(words), digest, ids, ends)


def special_of(words: Tokenizer) -> dict[str, int]:
    """The ids that a row is framed and padded with."""
    start, end = words.marks()
    return {"start": start, "end": end, "pad": words.pad_id}


def read_manifest(folder: str | Path) -> dict:
    """What a folder of prepared text says of itself; UserError where it is none."""
    path = Path(folder) / MANIFEST
    try:
        manifest = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = f"write it with `smke prepare text FILE --out={folder}`"
        raise UserError(f"no prepared text at {folder}: {remedy}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): prepare the text again") from None
    damaged = UserError(f"{path} is damaged: prepare the text again")
    if not isinstance(manifest, dict):
        raise damaged
    if manifest.get("kind") != KIND:
        raise UserError(f"{folder} holds prepared images, no text: give a folder that `smke prepare text` wrote")
    if manifest.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise UserError(f"{folder} was written by another version of `smke prepare text`: prepare the text again")
    if not _is_whole(manifest):
        raise damaged
    return manifest


def _is_whole(manifest: dict) -> bool:
    """Whether all that is read of a manifest is there, and of its type."""
    special, splits = manifest.get("special"), manifest.get("splits")
    if not (isinstance(special, dict) and isinstance(splits, dict) and "format_version" in manifest):
        return False
    if not all(isinstance(own, dict) for own in splits.values()):
        return False
    texts = [manifest.get("dataset"), manifest.get("tokenizer"), *(own.get("digest") for own in splits.values())]
    numbers = [special.get(name) for name in ("start", "end", "pad")]
    numbers += [manifest.get(name) for name in ("length", "vocab_size")]
    numbers += [own.get(name) for own in splits.values() for name in ("rows", "tokens")]
    return all(isinstance(x, str) for x in texts) and all(type(x) is int and x >= 0 for x in numbers)


def open_texts(folder: str | Path, split: str) -> TextRows:
    """A split of prepared text.  Raises UserError where there is none, and where its files were cut short."""
    folder, manifest = Path(folder), read_manifest(folder)
    if split not in manifest["splits"]:
        raise UserError(f"{folder} has no split {split!r}: it has {', '.join(manifest['splits'])}")
    own = manifest["splits"][split]
    ids = _mapped(folder / f"{split}.tokens", dtype_of(manifest["vocab_size"]), own["tokens"])
    ends = _mapped(folder / f"{split}.ends", ENDS, own["rows"])
    return TextRows(
        manifest["dataset"], split, manifest["length"], manifest["special"], own["digest"], ids, ends
    )  # fmt: skip


def _mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    found, size = path.stat().st_size if path.is_file() else 0, count * dtype.itemsize
    if found != size:
        raise UserError(f"{path} has {found:,} bytes, not the {size:,} that were written: prepare the text again")
    return np.memmap(path, dtype, mode="r")


def read_rows(sources: Sequence[TextRows], rows: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """`[CLS] tokens [SEP]` and padding of rows that are numbered through all `sources`.

    length: at least that of the rows
    -> ids int32 (B, length), mask int32 (B, length), 1 = token
    """
    ends = np.cumsum([len(source) for source in sources])
    ids, mask = np.empty((len(rows), length), np.int32), np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        number = int(np.searchsorted(ends, row, side="right"))
        source = sources[number]
        own = source.parts(row - int(ends[number]) + len(source))
        ids[i] = source.special["pad"]
        ids[i, 0], ids[i, 1 : len(own) + 1], ids[i, len(own) + 1] = source.special["start"], own, source.special["end"]
        mask[i, : len(own) + 2] = 1
    return ids, mask


def text_batches(
    sources: Sequence[TextRows], *, batch_size: int, length: int, seed: int, process: tuple[int, int] = (0, 1),
    threads: int = 2,
) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """An endless iterator of {'text', 'text_mask' (b, L), 'id' (b,)}, the rows of all `sources` shuffled together.

    Each epoch is shuffled anew, and its incomplete last batch is dropped.  The state of the iterator counts batches.
    Neither `process`, which is (its number p, their count), nor `threads` changes the rows of a batch: process p has
    the rows [p·b, (p + 1)·b) of every batch of B = b · count rows.
    Raises UserError where an epoch has fewer rows than one batch.
    """
    total = sum(map(len, sources))
    if total < batch_size:
        raise UserError(f"the text has {total} rows, fewer than one batch of {batch_size}: lower batch_size")

    def read(numbers: list[int]) -> dict[str, np.ndarray]:
        ids, mask = read_rows(sources, numbers, length)
        return {"text": ids, "text_mask": mask, "id": np.asarray(numbers, np.int32)}

    return array_batches(
        read, total, batch_size=batch_size, seed=seed, example_bytes=8 * length, process=process, threads=threads
    )
