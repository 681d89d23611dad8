"""Captions without their images: half of what is trained unpaired (MoTIS' first stage, spec A.2)."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.data.lines import TextLines
from smke_jax.data.pipeline import array_batches
from smke_jax.errors import UserError
from smke_jax.parallel.process import failing_together
from smke_jax.tasks.base import BatchPlan, Draft, Split, Task, columns_of
from smke_jax.tasks.pairs import TEXT, Captions, Opened
from smke_jax.tasks.vocabulary import words_of


def captions(
    *,
    keep: Path | None,
    known: Mapping[str, int] | None = None,
    source: str = "prepared",
    data: tuple[str, ...] = (),
    weights: tuple[int, ...] = (),
    caps: tuple[int, ...] = (),
    split: str = "train",
    tokenizer: str = "",
    vocab_size: int = 30_522,
    max_length: int = 64,
    threads: int = 2,
    prefetch_mib: float = 256.0,
) -> Draft:
    """The captions of images, each a row: 'text', 'text_mask' and 'id', the number of the caption.

    data: folders written by `smke prepare`, of which no image is opened; or text files, one caption a line, which are
          the split that is trained on and have no other
    The other fields are those of `pairs`.
    """
    files = [path for path in data if Path(path).is_file()]
    if files and (len(files) < len(data) or weights or caps):
        raise UserError(f"{files[0]} is a text file: give text files alone, without weights and caps")
    whole = Opened(source, tuple(data), tuple(weights), tuple(caps), False, threads, prefetch_mib, split, 1.0)
    opened = _Files(tuple(files), split) if files else whole
    words = words_of(
        keep,
        size=vocab_size,
        begun=known is not None,
        given=tokenizer,
        captions=lambda: (caption for own in opened.open(split).all_captions() for caption in own),
    )
    facts = {"vocab_size": words.vocab_size}

    def read(rows, texts: Captions) -> dict[str, np.ndarray]:
        encoded = words.encode([texts[i] for i in rows], max_length)
        return {**dict(zip(TEXT, encoded, strict=True)), "id": np.asarray(rows, np.int32)}

    def batches(plan: BatchPlan):
        texts = _captions(opened, split)
        return array_batches(
            lambda rows: read(rows, texts), len(texts), batch_size=plan.batch_size, seed=plan.seed,
            example_bytes=8 * max_length, process=plan.process, threads=threads, prefetch_mib=prefetch_mib,
        )  # fmt: skip

    def evaluated(name: str) -> Split:
        origin = opened.open(name) if name == split else opened.evaluation(name)
        texts = Captions(origin)
        encode = lambda rows: words.encode([texts[i] for i in rows], max_length)  # noqa: E731
        columns = columns_of(TEXT, len(texts), encode, f"{max_length} tokens")
        return Split(f"captions of {origin.dataset} {name}", origin.digest, columns, {"texts": texts})

    example = dict.fromkeys(TEXT, jax.ShapeDtypeStruct((max_length,), jnp.int32))

    def finish(sizes: Mapping[str, int]) -> Task:
        if sizes:
            raise UserError("this task has no images: leave out the networks that take them")
        with failing_together():
            if keep is not None and known is None:
                _captions(opened, split)
        return Task(
            facts=facts,
            example=lambda: {**example, "id": jax.ShapeDtypeStruct((), jnp.int32)},
            length=lambda: len(_captions(opened, split)),
            identity=lambda: {"data": opened.open(split).digest, "tokenizer": words.digest},
            batches=batches,
            split=evaluated,
            train=split,
            fixed=dict.fromkeys(TEXT, "id"),
            tokenizer=words,
            counts=lambda name: (opened.open(name) if name == split else opened.evaluation(name)).counts(),
            threads=threads,
        )

    return Draft(facts, finish)


@dataclasses.dataclass(frozen=True)
class _Files:
    """Text files in the place of `Opened`."""

    paths: tuple[str, ...]
    split: str

    def open(self, split: str) -> TextLines:
        return _read(self.paths)

    def evaluation(self, split: str) -> TextLines:
        raise UserError(f"{self.paths[0]} is a text file, which has no split {split!r} besides {self.split!r}")


_read = functools.lru_cache(maxsize=4)(TextLines)


def _captions(opened: "Opened | _Files", split: str) -> Captions:
    """All captions of a split; UserError where there is none."""
    source = opened.open(split)
    if not int(np.sum(source.num_captions)):
        raise UserError(f"{source.dataset} has no caption in its split {split!r}: give a folder with captions")
    return Captions(source)
