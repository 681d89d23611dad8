"""Average median rank over 1k splits, the measure of Aytar et al. (See, Hear and Read) for COCO."""

import numpy as np

from smke_jax.evaluators.top_k import match_ranks


def average_median_rank(
    images, texts, caption_image, *, split_size: int = 1000, captions_per_image: int = 5
) -> tuple[dict[str, float] | None, str | None]:
    """(ranks, None), or (None, the reason) when the data cannot give the measure.

    images (N, D) in the order of their ids, texts (M, D), caption_image (M,). The images are cut into
    consecutive full splits (a shorter rest is left out). For each split and each c < `captions_per_image`,
    the c-th caption of every image forms a split_size x split_size problem with one right answer per row; its
    median rank (from 1, mean of the two middle values) is averaged over c, then over splits.
    """
    splits = len(images) // split_size
    if splits == 0:
        return None, f"needs at least {split_size} images, here {len(images)}"
    captions = np.bincount(caption_image, minlength=len(images))
    short = np.flatnonzero(captions[: splits * split_size] < captions_per_image)
    if len(short):
        return None, (
            f"needs {captions_per_image} captions per image; {len(short)} images have fewer (first: image {short[0]})"
        )
    # Captions grouped by image, in their own order; the groups differ in length, hence the offsets.
    grouped = np.argsort(caption_image, kind="stable")
    first = np.concatenate([[0], np.cumsum(captions)[:-1]])

    pair = np.arange(split_size)
    medians = {"image_to_text": [], "text_to_image": []}
    for split in range(splits):
        rows = slice(split * split_size, (split + 1) * split_size)
        for c in range(captions_per_image):
            chosen = texts[grouped[first[rows] + c]]
            medians["image_to_text"].append(np.median(match_ranks(images[rows], chosen, pair, pair)))
            medians["text_to_image"].append(np.median(match_ranks(chosen, images[rows], pair, pair)))
    # Every split has the same number of captions, so one mean equals the mean of the splits' means.
    return {direction: float(np.mean(values)) for direction, values in medians.items()}, None
