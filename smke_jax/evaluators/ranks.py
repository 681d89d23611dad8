"""The rank of every query of a gallery: what recalls and their intervals are made of, kept beside them."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax.errors import UserError
from smke_jax.evaluators.top_k import ranks_and_best

RECALL_AT = (1, 5, 10)


class Ranks(NamedTuple):
    """Ranks, from 1, of the best right answer of each query against the whole gallery."""

    image_to_text: np.ndarray  # (N,)
    text_to_image: np.ndarray  # (M,)
    caption_image: np.ndarray  # (M,) row of each caption's image

    def recalls(self) -> np.ndarray:
        """(6,) in percent: at 1, 5 and 10 from images to texts, then from texts to images."""
        return 100 * np.array([np.mean(ranks <= k) for ranks in self[:2] for k in RECALL_AT])


def retrieval_ranks(images, texts, caption_image, *, chunk_size: int = 1024) -> Ranks:
    """Of images (N, D) and texts (M, D), scored by dot products; caption_image (M,) is the row of each text's image."""
    return ranks_with_best(images, texts, caption_image, 0, chunk_size=chunk_size)[0]


def ranks_with_best(
    images, texts, caption_image, k: int, *, chunk_size: int = 1024
) -> tuple[Ranks, tuple[np.ndarray, np.ndarray]]:
    """`retrieval_ranks`, and by the same scores the best `k` texts of each image and the best `k` images of each text.

    The best are (N, k) and (M, k), or as wide as the gallery where that is smaller.
    """
    caption_image = np.asarray(caption_image)
    image_ids = np.arange(len(images))
    of_images, texts_found = ranks_and_best(
        images, texts, image_ids, caption_image, min(k, len(texts)), chunk_size=chunk_size
    )
    of_texts, images_found = ranks_and_best(
        texts, images, caption_image, image_ids, min(k, len(images)), chunk_size=chunk_size
    )
    return Ranks(of_images, of_texts, caption_image), (texts_found, images_found)


def read_ranks(path: str | Path) -> Ranks:
    """What an evaluation of retrieval wrote as .npz; raises UserError where there is none, or a damaged one."""
    try:
        with np.load(path) as arrays:
            ranks = Ranks(*(arrays[name].astype(np.int64) for name in Ranks._fields))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: `smke evaluate` of the run writes it") from None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        raise UserError(f"{path} is damaged: `smke evaluate` of the run writes it again") from None
    return ranks
