"""Zero-shot classification: the class whose sentences are nearest to the image (Radford et al. 2021; spec 23)."""

import functools
from collections.abc import Sequence

import numpy as np

from smke_jax.data.labelled import LabelledSource, open_labelled
from smke_jax.data.labelled.prompts import prompts, read_names, read_templates
from smke_jax.errors import UserError
from smke_jax.evaluators.accuracy import accuracy_figures
from smke_jax.evaluators.base import Encode, Evaluator, Figures
from smke_jax.evaluators.own_images import OwnImages, image_sizes_of
from smke_jax.evaluators.top_k import finite_rows
from smke_jax.tasks.base import Column, Split, Task


def zero_shot(
    *,
    data: str = "",
    layout: str = "folders",
    part: str = "dev",
    held_back: float = 0.2,
    templates: str = "",
    class_names: str = "",
    split: str = "dev",
    level: str = "out",
    every: int = 0,
) -> Evaluator:
    """Percent of the images whose class is the first, or among the first five, by cosine; checkpoints rank by top-1.

    data, layout, held_back: the labelled images, as of the task `labelled_images`; part: the split of them
    templates:   a file with a template a line, such as 'a photo of {}'; '' takes eight of our own.  For CLIP's 80, put
                 them into such a file as they were published
    class_names: a file with what the classes are called, a line each in their order; '' takes the names of the data
    split:       of the run: its images say which sizes the networks take
    level:       fc1 | out | head, of images and of texts
    A prototype of a class is the mean of its normalised sentences, normalised again.
    """
    needs = tuple(f"{side}/{level}" for side in ("image", "text"))

    @functools.cache
    def opened():
        source = open_labelled(layout, data, part, share=held_back)
        return source, *class_prompts(source, templates, class_names)

    def check(task: Task, on: Split) -> None:
        if task.tokenizer is None or "text" not in on.columns:
            raise UserError("this run reads no text: zero-shot classification is for image-text models")
        opened()

    def run(encode: Encode, task: Task, on: Split) -> Figures:
        check(task, on)
        source, texts, protocol = opened()
        length = on.columns["text"].read([0]).shape[1]
        ids, mask = task.tokenizer.encode(texts, length)
        sentences = Split("prompts", "", {name: Column(len(ids), lambda rows, x=x: x[np.asarray(rows)])
                                          for name, x in (("text", ids), ("text_mask", mask))})  # fmt: skip
        images, photos = OwnImages(source, image_sizes_of(on)).encoded(encode, needs[0])
        found = images, encode(needs[1:], sentences)[needs[1]]
        return zero_shot_figures(*found, photos, f"{protocol}, cosine of {level!r}, {_about(photos)}, {length} tokens")

    return Evaluator(needs, run, split, every, best="top1", check=check, stored=False)


def class_prompts(source: LabelledSource, templates: str, class_names: str) -> tuple[list[str], str]:
    """(the sentences of all classes of `source`, those of the first class first; what a protocol says of them)."""
    forms, names = read_templates(templates), read_names(class_names, source.classes)
    about = f"{source.dataset} {source.split}, zero-shot, {len(names)} classes × {len(forms)} templates"
    return prompts(names, forms), about


def zero_shot_figures(images: np.ndarray, sentences: np.ndarray, photos: Split, protocol: str) -> Figures:
    """What embeddings images (N, D) and sentences (C · T, D), class by class, find of the labels of `photos`."""
    weights = prototypes(sentences, len(photos.facts["classes"]))
    return accuracy_figures(_unit(finite_rows(images, "images")) @ weights.T, photos, protocol)


def prototypes(sentences: np.ndarray, classes: int) -> np.ndarray:
    """Sentences (C · T, D), those of the first class first -> (C, D): the mean of each T of length 1, of length 1."""
    rows = _unit(finite_rows(sentences, "sentences"))
    return _unit(rows.reshape(classes, -1, rows.shape[1]).mean(axis=1))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _about(photos: Split) -> str:
    abouts: Sequence[str] = [column.about for column in photos.columns.values()]
    return " and ".join(dict.fromkeys(abouts))
