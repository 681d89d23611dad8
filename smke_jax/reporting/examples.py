"""What is found for typed texts, as a report shows it."""

from collections.abc import Callable, Sequence

import numpy as np

from smke_jax.evaluators.examples import TOP
from smke_jax.evaluators.retrieval import Retrieval
from smke_jax.evaluators.top_k import top_matches
from smke_jax.reporting.report import Query


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
