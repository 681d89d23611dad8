"""What a retrieval result looks like: captions with the images found for them, images with their captions."""

from collections.abc import Callable, Sequence

import numpy as np

from smke_jax.evaluators.retrieval import Retrieval
from smke_jax.evaluators.top_k import top_matches
from smke_jax.reporting.report import Query

TOP = 5


def text_to_image(result: Retrieval, image_of: Callable[[int], np.ndarray], count: int, seed: int = 0) -> list[tuple]:
    """`count` captions drawn at random, not chosen, as (caption, [(image, whether it is the caption's own), …])."""
    rows = np.random.default_rng(seed).choice(len(result.texts), count, replace=False)
    found, _ = top_matches(result.texts[rows], result.images, min(TOP, len(result.images)))
    return [
        (result.captions[row], [(image_of(i), bool(i == result.caption_image[row])) for i in images])
        for row, images in zip(rows, found)
    ]


def image_to_text(result: Retrieval, image_of: Callable[[int], np.ndarray], count: int, seed: int = 0) -> list[tuple]:
    """`count` images drawn at random, not chosen, as (image, [(caption, whether it is the image's own), …])."""
    rows = np.random.default_rng(seed).choice(len(result.images), count, replace=False)
    found, _ = top_matches(result.images[rows], result.texts, min(TOP, len(result.texts)))
    return [
        (image_of(row), [(result.captions[i], bool(result.caption_image[i] == row)) for i in texts])
        for row, texts in zip(rows, found)
    ]


def text_queries(
    texts: Sequence[str], embeddings: np.ndarray, result: Retrieval, image_of: Callable, truth: Sequence | None = None
) -> list[Query]:
    """The images found for typed `texts` with L2-normalised `embeddings` (Q, D); truth[q] (N,) says which are right."""
    found, scores = top_matches(embeddings, result.images, min(TOP, len(result.images)))
    return [
        Query(
            text, [image_of(i) for i in images], score, None if truth is None else [bool(truth[q][i]) for i in images]
        )
        for q, (text, images, score) in enumerate(zip(texts, found, scores))
    ]
