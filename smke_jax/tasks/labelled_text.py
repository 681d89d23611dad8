"""Labelled sentences, and pairs of them: GLUE's tasks, and others in the same files."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.data.drawn_sentences import drawn_sentences
from smke_jax.data.glue import GlueTask, Sentences, glue_task, read_glue
from smke_jax.data.pipeline import array_batches
from smke_jax.data.tokenizer import Normaliser, Tokenizer
from smke_jax.errors import UserError
from smke_jax.tasks.base import BatchPlan, Draft, Split, Task, columns_of
from smke_jax.tasks.vocabulary import words_of

TOKENS = ("text", "text_mask", "text_types")


def labelled_text(
    *,
    keep: Path | None,
    known: Mapping[str, int] | None = None,
    glue: str,
    files: str = "glue",
    data: str = "",
    split: str = "train",
    tokenizer: str = "",
    vocab_size: int = 30_522,
    lowercase: bool = True,
    strip_accents: bool = True,
    split_cjk: bool = True,
    max_length: int = 256,
    threads: int = 2,
    prefetch_mib: float = 256.0,
) -> Draft:
    """Sentences with a class or a score: 'text', 'text_mask', 'label' and 'id'; pairs have 'text_types' as well.

    'text' (B, L) is [CLS] first [SEP], and of a pair second [SEP] behind it, of which 'text_types' is 1.  'label' (B,)
    is int32, or float32 for a score.

    keep:       folder of the run, where the vocabulary lies; None opens nothing, for plans
    known:      the facts that a run recorded; None where it is about to begin
    glue:       cola | rte | stsb | wnli | mrpc | qqp | sst2 | qnli | mnli: columns, labels and splits
    files:      of FILES: glue reads the folder `data`; scenes makes sentences of that form from the drawn scenes
    data:       folder with the task's tab-separated files
    max_length: tokens of a sentence or pair, [CLS] and [SEP] included; of a pair the longer sentence is cut first
    The other fields are those of `smke_jax.tasks.pairs.pairs`.
    """
    form = glue_task(glue)
    opened = functools.cache(lambda name: FILES[files](glue, form, data, name))
    facts = {**(known or {}), "classes": form.outputs}
    words = words_of(
        keep,
        size=vocab_size,
        begun=known is not None,
        given=tokenizer,
        captions=lambda: (text for column in opened(split).texts for text in column),
        normaliser=Normaliser(lowercase, strip_accents, split_cjk),
    )
    facts["vocab_size"] = words.vocab_size
    return Draft(facts, lambda sizes: _task(form, opened, facts, split, words, max_length, threads, prefetch_mib))


def _from_files(name: str, form: GlueTask, data: str, split: str) -> Sentences:
    if not data:
        raise UserError(f"data is empty: give the folder with the files of {name}")
    return read_glue(name, data, split)


def _from_scenes(name: str, form: GlueTask, data: str, split: str) -> Sentences:
    if data:
        raise UserError("data is for files: leave it out with files='scenes'")
    return drawn_sentences(form, split)


FILES = {"glue": _from_files, "scenes": _from_scenes}


def _task(
    form: GlueTask, opened: Callable[[str], Sentences], facts, split: str, words: Tokenizer, length: int, threads: int,
    prefetch_mib: float,
) -> Task:  # fmt: skip
    arrays = TOKENS if len(form.texts) == 2 else TOKENS[:2]
    kind = jnp.int32 if form.classes else jnp.float32

    def example():
        text = {name: jax.ShapeDtypeStruct((length,), jnp.int32) for name in arrays}
        return {**text, "label": jax.ShapeDtypeStruct((), kind), "id": jax.ShapeDtypeStruct((), jnp.int32)}

    def batches(plan: BatchPlan):
        found = opened(split)

        def read(rows):
            encoded = encode_rows(words, found.texts, rows, length)
            return {**encoded, "label": found.labels[rows], "id": np.asarray(rows, np.int32)}

        return array_batches(
            read, len(found.labels), batch_size=plan.batch_size, seed=plan.seed, example_bytes=4 * length * len(arrays),
            process=plan.process, threads=threads, prefetch_mib=prefetch_mib,
        )  # fmt: skip

    def counts(name: str) -> list[dict]:
        found = opened(name)
        return [{"data": found.name, "rows": len(found.labels), "skipped": sum(found.skipped.values())}]

    return Task(
        facts=facts,
        example=example,
        length=lambda: len(opened(split).labels),
        identity=lambda: {"data": opened(split).digest, "tokenizer": words.digest},
        batches=batches,
        split=lambda name: sentence_split(opened(name), form, words, length),
        train=split,
        tokenizer=words,
        counts=counts,
        threads=threads,
    )


def encode_rows(words: Tokenizer, texts, rows, length: int) -> dict[str, np.ndarray]:
    """{'text', 'text_mask', of pairs 'text_types': int32 (R, L)} of the rows `rows` of one or two lists of texts."""
    columns = [[column[row] for row in rows] for column in texts]
    made = words.encode(*columns, length) if len(columns) == 1 else words.encode_pairs(*columns, length)
    return dict(zip(TOKENS, made, strict=False))


def sentence_split(found: Sentences, form: GlueTask, words: Tokenizer, length: int) -> Split:
    """All rows of `found`, with their 'labels', 'sentences' (one or two lists) and the names of the 'classes'.

    The fact 'texts' is the first sentence of every row.
    """
    read = lambda rows: list(encode_rows(words, found.texts, rows, length).values())  # noqa: E731
    columns = columns_of(TOKENS[: len(found.texts) + 1], len(found.labels), read, f"{length} tokens")
    facts = {"labels": found.labels, "texts": found.texts[0], "sentences": found.texts, "classes": form.classes}
    return Split(found.name, found.digest, columns, facts)
