"""The text half: sentence vectors of every tower, and how well GLUE's tasks can be read from them."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax.data.glue import GLUE, Sentences, glue_task, read_glue, splits_in
from smke_jax.data.tokenizer import Tokenizer
from smke_jax.errors import UserError
from smke_jax.evaluators.base import Figures
from smke_jax.evaluators.encode import Encoder
from smke_jax.evaluators.labels import label_figures
from smke_jax.evaluators.linear import ridge
from smke_jax.networks.encoders import describe_encoder
from smke_jax.networks.text_tower import text_tower
from smke_jax.studies.encoders.towers import Tower, encoder_of
from smke_jax.tasks.base import Column, Split
from smke_jax.training.restore import TrainedRun

FOLDERS = {
    "CoLA": "cola", "RTE": "rte", "STS-B": "stsb", "WNLI": "wnli", "MRPC": "mrpc", "QQP": "qqp", "SST-2": "sst2",
    "QNLI": "qnli", "MNLI": "mnli",
}  # fmt: skip
METRICS = {"cola": ("matthews", "accuracy"), "mrpc": ("f1", "accuracy"), "qqp": ("f1", "accuracy")}
SEED = 0  # of the rows that a probe is fitted to
SIZES = (16, 32, 64)  # tokens: a sentence is padded to the first that holds it, and cut to the last
FITTED = 10_000  # most rows that a probe is fitted to
FEATURE = "words/feature"

Vectors = Callable[[Sequence[str]], np.ndarray]  # N sentences -> (N, D)


class TextTask(NamedTuple):
    """A task of GLUE in a folder: what the probe is fitted to, where it is, and the dev set."""

    name: str
    fitted: Sentences | None
    dev: Sentences

    @property
    def title(self) -> str:
        return self.dev.name


def text_tasks(folder: Path) -> list[TextTask]:
    """The tasks in the sub-folders of `folder` that have GLUE's names (CoLA, RTE, STS-B, …), in that order.

    A task with two dev sets, MNLI, comes twice; of Microsoft's own files of MRPC the test set is taken.
    Raises UserError for a folder of that name whose files are not those of the task.
    """
    found = []
    for sub, name in FOLDERS.items():
        own = folder / sub
        if own.is_dir():
            fitted = read_glue(name, own, "train") if GLUE[name].classes else None
            there = [split for split in splits_in(name, own) if split != "train"]
            held_out = [split for split in there if split != "test"] or there or ["dev"]  # the last one says what lacks
            found += [TextTask(name, fitted, read_glue(name, own, split)) for split in held_out]
    return found


def text_figures(run: TrainedRun, tower: Tower, tasks: Sequence[TextTask]) -> list[Figures]:
    """What the vectors of `tower` say of each of `tasks`.

    Classes: ridge regression in closed form, its penalty by the error of each row when left out, fitted to the vector
    of a sentence, or of a pair to u, v, |u - v| and u · v (Conneau et al. 2017, "Supervised Learning of Universal
    Sentence Representations").
    Scores: the cosine of u and v, nothing is fitted.
    """
    vectors = _vectors(run, tower)
    return [text_probe(vectors, task) for task in tasks]


def text_probe(vectors: Vectors, task: TextTask) -> Figures:
    """The figures of one task; see `text_figures`."""
    form = glue_task(task.name)
    if task.fitted is None:
        u, v = (np.asarray(vectors(column), np.float64) for column in task.dev.texts)
        cosine = np.sum(u * v, axis=1) / np.maximum(np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1), 1e-12)
        return label_figures(cosine[:, None], _labelled(task.dev, ()), ("spearman", "pearson"))
    fitted = _drawn(task.fitted)
    x, other = (_features([vectors(column) for column in of.texts]) for of in (fitted, task.dev))
    scores, _ = ridge(x, fitted.labels, other, form.outputs)
    return label_figures(scores, _labelled(task.dev, form.classes), METRICS.get(task.name, ("accuracy",)))


def _drawn(found: Sentences) -> Sentences:
    """At most FITTED rows, drawn at random: files may be sorted."""
    count = len(found.labels)
    if count <= FITTED:
        return found
    rows = np.sort(np.random.default_rng(SEED).choice(count, FITTED, replace=False))
    texts = tuple([column[row] for row in rows] for column in found.texts)
    return found._replace(texts=texts, labels=found.labels[rows])


def _labelled(found: Sentences, classes: tuple[str, ...]) -> Split:
    facts = {"labels": found.labels, "classes": classes, "sentences": found.texts}
    return Split(found.name, found.digest, {}, facts)


def _features(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """(N, D) of sentences, (N, 4 D) of pairs."""
    if len(vectors) == 1:
        return vectors[0]
    u, v = vectors
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


def _vectors(run: TrainedRun, tower: Tower) -> Vectors:
    """Means over the tokens of the last layer of `tower`."""
    words = run.experiment.task.tokenizer
    if words is None:
        raise UserError("this run reads no text")
    if tower.scratch:
        model = {key: x for key, x in describe_encoder(tower.path, "text").items() if key != "dropout"}
        network = text_tower(vocab_size=words.vocab_size, start="random", model=model, trained=False)
    else:
        network = text_tower(vocab_size=words.vocab_size, start=tower.path, depth=tower.depth, trained=False)
    encode = encoder_of(run, network, "words")
    # Two dev sets have one training set.
    once = functools.lru_cache(maxsize=4)(lambda texts: encoded(encode, words, texts))
    return lambda texts: once(tuple(texts))


def encoded(encode: Encoder, words: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """(N, D): sentences of about the same length are run together, so that little is padding."""
    ids, mask = words.encode(texts, SIZES[-1])
    lengths, rows, found = mask.sum(axis=1), [], []
    for shortest, size in zip((0, *SIZES), SIZES, strict=False):
        own = np.flatnonzero((shortest < lengths) & (lengths <= size))
        if len(own):
            columns = {
                name: Column(len(own), lambda some, x=x[own, :size]: x[some])
                for name, x in (("text", ids), ("text_mask", mask))
            }
            rows.append(own)
            found.append(encode((FEATURE,), Split(f"{len(own)} sentences", "", columns))[FEATURE])
    out = np.concatenate(found)
    out[np.concatenate(rows)] = out.copy()
    return out
