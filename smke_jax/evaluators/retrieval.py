"""Image-text retrieval on one split: every image against all captions, every caption against all images (spec 23)."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from smke_jax.errors import UserError
from smke_jax.evaluators.base import Encode, Evaluator, Figures
from smke_jax.evaluators.examples import image_to_text, text_to_image
from smke_jax.evaluators.ranks import RECALL_AT, Ranks, ranks_with_best
from smke_jax.evaluators.recalls import DIRECTIONS, format_table, retrieval_metrics
from smke_jax.tasks.base import Split, Task

SUM = "recall_sum"
PAIR = ("image", "text")  # what is compared where nothing else is said
SHOWN = 8  # captions, and images, that a report shows with what is found for them


class Retrieval(NamedTuple):
    """Metrics, and the ranks and embeddings that they were computed from."""

    metrics: dict
    ranks: Ranks
    images: np.ndarray  # (N, D), L2-normalised
    texts: np.ndarray  # (M, D), L2-normalised
    caption_image: np.ndarray  # (M,) row of each caption's image
    captions: Sequence[str]  # M
    best: tuple[np.ndarray, np.ndarray] = ()  # (N, k) texts of each image, (M, k) images of each text, best first


def retrieve(encode: Encode, split: Split, level: str, k: int = 0, pair: tuple[str, str] = PAIR) -> Retrieval:
    """All images and all captions of `split` by the cosine of their representations 'image/<level>', 'text/<level>'.

    k:    how many of the best of each query are told, which are all where the gallery is smaller
    pair: what stands in the place of 'image' and of 'text', such as 'teacher_text'
    """
    names = _names(pair, level)
    images, texts = (encode((name,), split)[name] for name in names)
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    captions, caption_image = split.facts["captions"], split.facts["caption_image"]
    said = {name: column.about for name, column in split.columns.items() if column.about}
    read = ["image"] if "image" in said else [name for name in said if name != "text"]
    about = (said[name] for name in (*read, "text"))
    compared = repr(level) if tuple(pair) == PAIR else " and ".join(map(repr, names))
    protocol = ", ".join((split.name, "any-of-n", f"cosine of {compared}", *about))
    ranks, best = ranks_with_best(images, texts, caption_image, k)
    metrics = retrieval_metrics(images, texts, caption_image, protocol=protocol, ranks=ranks)
    return Retrieval(metrics, ranks, images, texts, caption_image, captions, best)


def retrieval(
    *, split: str = "dev", level: str = "out", pair: tuple[str, str] = PAIR, every: int = 0, best: str = SUM
) -> Evaluator:
    """Recall at 1, 5 and 10 and median rank in both directions; `best` ranks checkpoints.

    split: of the task; level: fc1 | out | head; every: steps, 0 after the last step alone
    pair:  the representations of images and of captions, such as ('image', 'teacher_text')
    best:  recall_sum, of all six, or one of them, such as text_to_image/r1
    """
    known = (SUM, *(f"{direction}/r{k}" for direction in DIRECTIONS for k in RECALL_AT))
    if best not in known:
        raise UserError(f"best is {best!r}: give one of {', '.join(known)}")

    def run(encode: Encode, task: Task, on: Split) -> Figures:
        found = retrieve(encode, on, level, pair=pair)
        scalars = {f"{d}/{key}": value for d in DIRECTIONS for key, value in found.metrics[d].items()}
        return Figures(
            {**scalars, SUM: found.metrics[SUM]},
            found.metrics,
            {name: x.astype(np.int32) for name, x in found.ranks._asdict().items()},
            format_table(found.metrics),
            functools.partial(_examples, found, on.facts["pixels"]) if "pixels" in on.facts else None,
        )

    return Evaluator(_names(pair, level), run, split, every, best=best)


def _names(pair: tuple[str, str], level: str) -> tuple[str, str]:
    image, text = pair
    return f"{image}/{level}", f"{text}/{level}"


def _examples(found: Retrieval, picture: Callable[[int], np.ndarray]) -> dict:
    """The same captions and images at every evaluation."""
    count = min(SHOWN, len(found.images), len(found.texts))
    return {
        "text_to_image": text_to_image(found, picture, count),
        "image_to_text": image_to_text(found, picture, count),
    }
