"""Recall within folds of 1,000 images: what is called COCO 1K, the mean over the five folds of its 5K test images."""

import numpy as np

from smke_jax.evaluators.ranks import RECALL_AT, retrieval_ranks

FOLD = 1000  # images


def fold_recalls(images, texts, caption_image, *, size: int = FOLD) -> dict | None:
    """{'folds': their number, 'image_to_text' and 'text_to_image': {r1, r5, r10}}, means over folds in percent.

    images (N, D) in the order of their ids, texts (M, D), caption_image (M,), as of `retrieval_metrics`.  A fold is
    `size` consecutive images with all of their captions; a shorter rest is left out.  None where there is no second
    fold.
    """
    count = len(images) // size
    if count < 2:
        return None
    found = []
    for first in range(0, count * size, size):
        own = (caption_image >= first) & (caption_image < first + size)
        ranks = retrieval_ranks(images[first : first + size], texts[own], caption_image[own] - first)
        found.append(ranks.recalls())
    recalls = iter(np.mean(found, axis=0).tolist())
    directions = ("image_to_text", "text_to_image")
    return {"folds": count, **{way: {f"r{k}": next(recalls) for k in RECALL_AT} for way in directions}}
