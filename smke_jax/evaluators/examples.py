"""What a retrieval result looks like: captions with the images found for them, images with their captions."""

from collections.abc import Callable

import numpy as np

from smke_jax.evaluators.top_k import top_matches

TOP = 5


def text_to_image(result, image_of: Callable[[int], np.ndarray], count: int, seed: int = 0) -> list[tuple]:
    """`count` captions of a `Retrieval`, drawn at random: (caption, [(image, whether it is the caption's own), …])."""
    rows = np.random.default_rng(seed).choice(len(result.texts), count, replace=False)
    found, _ = top_matches(result.texts[rows], result.images, min(TOP, len(result.images)))
    return [
        (result.captions[row], [(image_of(i), bool(i == result.caption_image[row])) for i in images])
        for row, images in zip(rows, found)
    ]


def image_to_text(result, image_of: Callable[[int], np.ndarray], count: int, seed: int = 0) -> list[tuple]:
    """`count` images of a `Retrieval`, drawn at random: (image, [(caption, whether it is the image's own), …])."""
    rows = np.random.default_rng(seed).choice(len(result.images), count, replace=False)
    found, _ = top_matches(result.images[rows], result.texts, min(TOP, len(result.texts)))
    return [
        (image_of(row), [(result.captions[i], bool(result.caption_image[i] == row)) for i in texts])
        for row, texts in zip(rows, found)
    ]
