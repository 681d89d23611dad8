"""How far recalls would be off on other images, and whether two recipes differ: by resampling the gallery's images.

The captions of one image are not independent, so images are drawn *together with* their captions; resampling captions
would give intervals that are too narrow. Ranks stay those against the full gallery: a resampled gallery would hold
duplicates of one image.
"""

from collections.abc import Sequence

import numpy as np

from smke_jax.errors import UserError
from smke_jax.evaluators.ranks import RECALL_AT, Ranks


def resampled_recalls(ranks: Ranks, resamples: int, seed: int = 0) -> np.ndarray:
    """(resamples, 6) recalls in the order of `Ranks.recalls`, each of as many images, drawn with replacement.

    The same `seed` draws the same images in every gallery of as many, so that differences are paired.
    """
    n_images = len(ranks.image_to_text)
    image_hits = np.stack([ranks.image_to_text <= k for k in RECALL_AT], axis=1)  # (N, 3)
    caption_hits = np.stack(
        [np.bincount(ranks.caption_image, ranks.text_to_image <= k, n_images) for k in RECALL_AT], axis=1
    )  # (N, 3), hits among the captions of each image
    captions = np.bincount(ranks.caption_image, minlength=n_images)[:, None]  # (N, 1)
    per_image = np.concatenate([image_hits, caption_hits, captions], axis=1).astype(np.float64)  # (N, 7)

    rng = np.random.default_rng(seed)
    totals = np.stack(
        [np.bincount(rng.integers(0, n_images, n_images), minlength=n_images) @ per_image for _ in range(resamples)]
    )  # (resamples, 7)
    return 100 * np.concatenate([totals[:, :3] / n_images, totals[:, 3:6] / totals[:, 6:]], axis=1)


def interval95(values: np.ndarray) -> np.ndarray:
    """(2, …) the 2.5th and 97.5th percentile along the first axis."""
    return np.percentile(values, (2.5, 97.5), axis=0)


def mean_recalls(seeds: Sequence[Ranks], resamples: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """A recipe's (7,) six recalls and their mean, over its seeds, and (2, 7) the 95 % intervals of these."""
    value, values = _recipe(seeds, resamples)
    return value, interval95(values)


def paired_difference(
    ours: Sequence[Ranks], theirs: Sequence[Ranks], resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Recalls of one recipe less those of another on the same gallery: (7,) with the mean of the six last, (2, 7).

    ours, theirs: the ranks of each seed. The 95 % intervals come from resampling the images that both were asked for,
    which takes the difficulty of the images out of the difference. Where a recipe has several seeds, its part of a
    resample is also moved by what the mean of so few of them may be off, Student's t times its standard error, as in
    the Behrens-Fisher problem. Of a recipe with one seed nothing is known of other seeds, and nothing is assumed.
    Raises UserError for galleries that are not the same.
    """
    reference = ours[0].caption_image
    if any(not np.array_equal(ranks.caption_image, reference) for ranks in (*ours, *theirs)):
        raise UserError("they were evaluated on different galleries")
    (value, values), (other, others) = _recipe(ours, resamples, stream=1), _recipe(theirs, resamples, stream=2)
    return value - other, interval95(values - others)


def _recipe(seeds: Sequence[Ranks], resamples: int, stream: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(7,) means over the seeds, and (resamples, 7) of what they might have been."""
    each = _with_mean(np.stack([ranks.recalls() for ranks in seeds]))  # (S, 7)
    values = np.mean([_with_mean(resampled_recalls(ranks, resamples)) for ranks in seeds], axis=0)
    if len(seeds) > 1:
        error = each.std(axis=0, ddof=1) / np.sqrt(len(seeds))
        values += error * np.random.default_rng(stream).standard_t(len(seeds) - 1, (resamples, 1))
    return each.mean(axis=0), values


def _with_mean(recalls: np.ndarray) -> np.ndarray:
    return np.concatenate([recalls, recalls.mean(axis=-1, keepdims=True)], axis=-1)
