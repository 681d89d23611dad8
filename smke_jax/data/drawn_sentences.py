"""Labelled sentences from the captions of the drawn scenes: a task of GLUE's form where no files are at hand."""

import numpy as np

from smke_jax.data import datasets
from smke_jax.data.glue import GlueTask, Sentences, sentences


def drawn_sentences(task: GlueTask, split: str) -> Sentences:
    """One row for every scene of a split, 'train' or 'gallery', with the texts and labels that `task` has.

    One sentence: the words of a caption in their order, or in the reverse order, in turn: the classes 1 and 0.
    Two with classes: class 0 has two captions of one scene, class 1 has captions of two scenes, and class 2 has the
    second caption in reverse.
    Two with a score: captions of one scene or of two, in turn, and the score is the share of the words of either that
    both have.
    """
    captions = datasets.scenes().split(split).captions
    first, own = ([caption[place] for caption in captions] for place in (0, 1))
    numbers = np.arange(len(captions))
    if len(task.texts) == 1:
        classes = (numbers + 1) % 2
        texts = [[text if right else _reversed(text) for text, right in zip(first, classes, strict=True)]]
        return sentences(f"scenes {split}", texts, classes.astype(np.int32), {})
    kinds = numbers % max(task.outputs, 2)
    made = (lambda i: own[i], lambda i: own[i - 1], lambda i: _reversed(own[i]))
    texts = [first, [made[kind](i) for i, kind in enumerate(kinds)]]
    if task.classes:
        return sentences(f"scenes {split}", texts, kinds.astype(np.int32), {})
    lowest, highest = task.score
    shared = [_shared(a, b) for a, b in zip(*texts, strict=True)]
    return sentences(f"scenes {split}", texts, (lowest + (highest - lowest) * np.array(shared)).astype(np.float32), {})


def _reversed(text: str) -> str:
    return " ".join(reversed(text.split()))


def _shared(one: str, other: str) -> float:
    one, other = set(one.split()), set(other.split())
    return len(one & other) / len(one | other)
