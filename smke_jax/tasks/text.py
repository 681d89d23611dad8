"""Running text, from folders that `smke prepare text` wrote, or of the captions of drawn scenes."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from smke_jax.data.datasets import open_source
from smke_jax.data.texts import (
    TOKENIZER,
    TextRows,
    open_texts,
    read_manifest,
    read_rows,
    rows_of,
    text_batches,
    whole_lines,
)
from smke_jax.data.tokenizer import Tokenizer
from smke_jax.errors import UserError
from smke_jax.parallel.process import failing_together
from smke_jax.tasks.base import BatchPlan, Draft, Split, Task, columns_of
from smke_jax.tasks.vocabulary import words_of

PREPARED, SCENES = "prepared", "scenes"  # sources


def text(
    *,
    keep: Path | None,
    known: Mapping[str, int] | None = None,
    source: str = PREPARED,
    data: tuple[str, ...] = (),
    split: str = "train",
    vocab_size: int = 30_522,
    max_length: int = 256,
    threads: int = 2,
) -> Draft:
    """Rows of running text: 'text', 'text_mask' (max_length,) and 'id'.

    keep:       folder of the run, where a copy of the vocabulary lies; None opens nothing, for plans
    known:      the facts that a run recorded; None where it is about to begin
    source:     prepared, or scenes: captions of drawn scenes, to try code without data
    data:       folders written by `smke prepare text`, read as one shuffled set; they have to be of one vocabulary
    vocab_size: of prepared text, whose vocabulary lies in its folder, what it has to have; of scenes at most so many
                tokens are trained
    max_length: tokens of a row, [CLS] and [SEP] included; shorter rows are padded, longer ones are refused
    threads:    for reading
    """
    if source not in (PREPARED, SCENES):
        raise UserError(f"config.task.source {source!r} is neither {PREPARED!r} nor {SCENES!r}")
    with failing_together():
        if source == PREPARED and known is None:
            _check_vocabulary(data, vocab_size)
    words = words_of(
        keep,
        size=vocab_size,
        begun=known is not None,
        given=str(Path(data[0]) / TOKENIZER) if source == PREPARED and keep is not None else "",
        captions=lambda: _captions(split),
    )
    if source == PREPARED:
        opened = functools.cache(lambda name: _prepared(tuple(data), name, words, max_length))
    else:
        opened = functools.cache(lambda name: (_of_scenes(name, words, max_length),))
    facts = {"vocab_size": words.vocab_size}

    def finish(sizes: Mapping[str, int]) -> Task:
        if sizes:
            raise UserError("this task has no images: leave out the networks that take them")
        return _task(opened, facts, split, words, max_length, threads)

    return Draft(facts, finish)


def _check_vocabulary(data: Sequence[str], vocab_size: int) -> None:
    """Raises UserError unless the first folder, whose vocabulary the run takes, has one of that size."""
    if not data:
        raise UserError("config.task.data is empty: name a folder that `smke prepare text` wrote")
    there = read_manifest(data[0])["vocab_size"]
    if there != vocab_size:
        raise UserError(
            f"{data[0]} was prepared with a tokenizer of {there} tokens: set config.task.vocab_size={there}, or "
            "prepare the text again with the tokenizer that is meant"
        )


def _prepared(data: Sequence[str], split: str, words: Tokenizer, max_length: int) -> tuple[TextRows, ...]:
    """A split of those folders that have it; of a split that none has, what the first one says."""
    manifests = {folder: read_manifest(folder) for folder in data}
    for folder, manifest in manifests.items():
        if manifest["tokenizer"] != words.digest:
            raise UserError(
                f"{folder} was prepared with another tokenizer than this run reads, that of the folder it began with: "
                "prepare the text again with that one"
            )
    having = [folder for folder, manifest in manifests.items() if split in manifest["splits"]]
    found = {folder: open_texts(folder, split) for folder in having or data}
    for folder, rows in found.items():
        if rows.length > max_length:
            raise UserError(
                f"{folder} has rows of {rows.length} tokens: set config.task.max_length={rows.length}, or prepare the "
                f"text again with --length={max_length}"
            )
    return tuple(found.values())


def _captions(split: str) -> list[str]:
    source = open_source(SCENES, split, data=(), weights=(), caps=(), in_memory=False)
    return [caption for captions in source.all_captions() for caption in captions]


def _of_scenes(split: str, words: Tokenizer, max_length: int) -> TextRows:
    lines = whole_lines(words.encode_parts(_captions(split)), max_length - 2)
    return rows_of(lines, words, name=SCENES, split=split, length=max_length)


@dataclasses.dataclass(frozen=True, eq=False)
class _Texts(Sequence):
    """The text of every row, decoded when it is asked for."""

    sources: tuple[TextRows, ...]
    words: Tokenizer
    length: int

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(f"there are {len(self)} rows, no number {row}")
        ids, mask = read_rows(self.sources, [row], self.length)
        return self.words.decode(ids[0, mask[0] == 1])


def _task(
    opened: Callable[[str], tuple[TextRows, ...]], facts: Mapping[str, int], split: str, words: Tokenizer, length: int,
    threads: int,
) -> Task:  # fmt: skip
    def example():
        arrays = {name: jax.ShapeDtypeStruct((length,), jnp.int32) for name in ("text", "text_mask")}
        return {**arrays, "id": jax.ShapeDtypeStruct((), jnp.int32)}

    def digest(name: str) -> str:
        return "+".join(source.digest for source in opened(name))

    def batches(plan: BatchPlan):
        return text_batches(
            opened(split), batch_size=plan.batch_size, length=length, seed=plan.seed, process=plan.process,
            threads=threads,
        )  # fmt: skip

    def evaluated(name: str) -> Split:
        sources = opened(name)
        count = sum(map(len, sources))
        read = lambda rows: read_rows(sources, rows, length)  # noqa: E731
        columns = columns_of(("text", "text_mask"), count, read, f"{length} tokens")
        names = ", ".join(source.name for source in sources)
        return Split(f"{names} {name}", digest(name), columns, {"texts": _Texts(sources, words, length)})

    return Task(
        facts=facts,
        example=example,
        length=lambda: sum(map(len, opened(split))),
        identity=lambda: {"data": digest(split), "tokenizer": words.digest},
        batches=batches,
        split=evaluated,
        train=split,
        fixed=dict.fromkeys(("text", "text_mask"), "id"),
        tokenizer=words,
        counts=lambda name: [
            {"data": source.name, "rows": len(source), "tokens": len(source.ids)} for source in opened(name)
        ],
        threads=threads,
    )
