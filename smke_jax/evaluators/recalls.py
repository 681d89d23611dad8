"""Image-text retrieval: recall at K, median rank, bootstrap intervals, exact top-k.

One evaluator, one protocol: images are grouped with all of their captions, never scored as a paired
diagonal. The definitions are those of BEiT-3's retrieval evaluation: an image is found when *any* of its
captions is among the top K captions, a caption is found when its one image is among the top K images.

Scores are dot products of the rows as they are given: pass L2-normalised embeddings to score by cosine.
Equal scores are ordered by index, so a collapsed model (every score equal) lands at chance, not at 100 %.
"""

import json
from math import comb
from pathlib import Path

import numpy as np

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.evaluators.bootstrap import interval95, resampled_recalls
from smke_jax.evaluators.folds import fold_recalls
from smke_jax.evaluators.median_rank import average_median_rank
from smke_jax.evaluators.ranks import RECALL_AT, Ranks, retrieval_ranks
from smke_jax.evaluators.top_k import finite_rows, top_matches

__all__ = ["chance_recall", "format_table", "retrieval_metrics", "top_matches", "write_json"]

DIRECTIONS = ("image_to_text", "text_to_image")
RECALL_HEADS = "text → image R@1 | R@5 | R@10 | image → text R@1 | R@5 | R@10"  # of a Markdown table


def retrieval_metrics(
    image_embeddings,
    text_embeddings,
    caption_image,
    *,
    protocol: str,
    chunk_size: int = 1024,
    bootstrap: int = 1000,
    seed: int = 0,
    ranks: Ranks | None = None,
) -> dict:
    """Recall at 1, 5, 10 and median rank in both directions, ready for JSON.

    image_embeddings: (N, D), one row per distinct image, in the order of their ids (1k splits depend on it).
    text_embeddings:  (M, D), one row per caption.
    caption_image:    (M,) integers, the row of the image that each caption describes.
    protocol:         what was measured, e.g. `coco-karpathy-test any-of-5`; printed wherever the numbers are.
    bootstrap:        resamples behind the 95 % intervals; 0 leaves them out (`ci95` is None).
    ranks:            what `retrieval_ranks` gives of these embeddings, where it is at hand.

    Recalls are percentages, ranks count from 1. Keys: protocol, n_images, n_captions, image_to_text and
    text_to_image {r1, r5, r10, median_rank}, mean_recall and recall_sum (over the six recalls), ci95
    {direction: {r1: [low, high], …}}, average_median_rank {direction: rank} or None, and in the latter case
    average_median_rank_reason. Of 2,000 images or more also folds_1k, see `fold_recalls`. At most `chunk_size` rows of
    the score matrix exist at a time.
    Raises UserError for embeddings or indices that cannot be scored.
    """
    images, texts, caption_image = _checked(image_embeddings, text_embeddings, caption_image, protocol)
    ranks = ranks or retrieval_ranks(images, texts, caption_image, chunk_size=chunk_size)
    metrics = {"protocol": protocol, "n_images": len(images), "n_captions": len(texts)}
    metrics |= recall_figures(ranks, bootstrap=bootstrap, seed=seed)
    median, reason = average_median_rank(images, texts, caption_image)
    metrics["average_median_rank"] = median
    if reason:
        metrics["average_median_rank_reason"] = reason
    if folds := fold_recalls(images, texts, caption_image):
        metrics["folds_1k"] = folds
    return metrics


def recall_figures(ranks: Ranks, *, bootstrap: int = 1000, seed: int = 0) -> dict:
    """Of `ranks`: both directions, mean_recall, recall_sum and ci95, as of `retrieval_metrics`."""
    figures, recalls = {}, iter(ranks.recalls().tolist())
    for direction in DIRECTIONS:
        at = {f"r{k}": next(recalls) for k in RECALL_AT}
        figures[direction] = {**at, "median_rank": float(np.median(getattr(ranks, direction)))}
    six = [figures[direction][f"r{k}"] for direction in DIRECTIONS for k in RECALL_AT]
    figures["mean_recall"] = sum(six) / len(six)
    figures["recall_sum"] = sum(six)
    figures["ci95"] = _bootstrap_intervals(ranks, bootstrap, seed) if bootstrap else None
    return figures


def chance_recall(n_images: int, captions_per_image: int, k: int) -> dict[str, float]:
    """Expected recall at `k`, in percent, of a random ranking of `n_images` with c captions each; exact.

    Image to text, any of c: 1 - C(M - c, k) / C(M, k) with M = n_images * c captions.
    Text to image: k / n_images.
    """
    if min(n_images, captions_per_image, k) < 1:
        raise UserError(
            f"chance_recall: n_images={n_images}, captions_per_image={captions_per_image} "
            f"and k={k} must all be at least 1"
        )
    captions = n_images * captions_per_image
    missed = comb(captions - captions_per_image, k) / comb(captions, k) if k <= captions else 0.0
    return {"image_to_text": 100 * (1 - missed), "text_to_image": 100 * min(k / n_images, 1.0)}


def recall_cells(metrics: dict) -> list[str]:
    """The six recalls of `metrics` in percent, in the order of RECALL_HEADS."""
    return [f"{metrics[way][f'r{k}']:.2f}" for way in ("text_to_image", "image_to_text") for k in RECALL_AT]


def format_table(metrics: dict) -> str:
    """A small text table of what `retrieval_metrics` returns, always with its protocol and counts.

    Recalls in percent, their 95 % intervals below them.
    """
    lines = [
        f"protocol: {metrics['protocol']}",
        f"{metrics['n_images']} images, {metrics['n_captions']} captions",
        f"{'':15}{'R@1':>16}{'R@5':>16}{'R@10':>16}{'median rank':>14}",
    ]
    keys = [f"r{k}" for k in RECALL_AT]
    for direction in DIRECTIONS:
        values = metrics[direction]
        recalls = "".join(f"{values[key]:16.2f}" for key in keys)
        lines.append(f"{direction.replace('_to_', ' -> '):15}{recalls}{values['median_rank']:14.1f}")
        if metrics.get("ci95"):
            bounds = [metrics["ci95"][direction][key] for key in keys]
            intervals = "".join(f"{f'[{low:.2f}, {high:.2f}]':>16}" for low, high in bounds)
            lines.append(f"{'  95 %':15}{intervals}")
    lines.append(f"mean recall {metrics['mean_recall']:.2f}, recall sum {metrics['recall_sum']:.2f}")
    median = metrics.get("average_median_rank")
    if median:
        lines.append(
            f"average median rank over 1k splits: image -> text {median['image_to_text']:.2f}, "
            f"text -> image {median['text_to_image']:.2f}"
        )
    if folds := metrics.get("folds_1k"):
        lines.append(f"mean of {folds['folds']} folds of 1,000 images")
        for direction in DIRECTIONS:
            recalls = "".join(f"{folds[direction][key]:16.2f}" for key in keys)
            lines.append(f"{direction.replace('_to_', ' -> '):15}{recalls}")
    return "\n".join(lines)


def write_json(path, metrics: dict) -> Path:
    """Write `metrics` as indented JSON, whole or not at all. ValueError for NaN, which JSON does not have."""
    return atomic.write_text(path, json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _checked(image_embeddings, text_embeddings, caption_image, protocol):
    """fp32 embeddings and int64 caption indices, or a UserError that names what is wrong."""
    if not protocol or not isinstance(protocol, str):
        raise UserError("protocol: name what is measured, e.g. 'coco-karpathy-test any-of-5'")
    images = finite_rows(image_embeddings, "image_embeddings")
    texts = finite_rows(text_embeddings, "text_embeddings")
    caption_image = np.asarray(caption_image)
    if images.shape[1] != texts.shape[1]:
        raise UserError(
            f"image_embeddings have {images.shape[1]} features, text_embeddings "
            f"{texts.shape[1]}: both must come from the same model"
        )
    if caption_image.shape != (len(texts),) or not np.issubdtype(caption_image.dtype, np.integer):
        raise UserError(
            f"caption_image is {caption_image.dtype}{list(caption_image.shape)}: give one "
            f"integer image index for each of the {len(texts)} captions"
        )
    caption_image = caption_image.astype(np.int64)
    if caption_image.min() < 0 or caption_image.max() >= len(images):
        raise UserError(
            f"caption_image goes from {caption_image.min()} to {caption_image.max()}: "
            f"indices must lie in 0..{len(images) - 1}"
        )
    bare = np.flatnonzero(np.bincount(caption_image, minlength=len(images)) == 0)
    if len(bare):
        raise UserError(
            f"{len(bare)} images have no caption (first: image {bare[0]}), so they could never "
            "be found: drop them or add their captions"
        )
    return images, texts, caption_image


def _bootstrap_intervals(ranks: Ranks, resamples: int, seed: int) -> dict:
    """95 % percentile intervals of each recall."""
    bounds = iter(interval95(resampled_recalls(ranks, resamples, seed)).T.tolist())
    return {direction: {f"r{k}": next(bounds) for k in RECALL_AT} for direction in DIRECTIONS}
