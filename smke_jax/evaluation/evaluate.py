"""Retrieval on one split, from a student's parameters."""

from typing import NamedTuple

import numpy as np

from smke_jax.evaluation.embed import divisible, embed_images, embed_texts
from smke_jax.evaluation.ranks import Ranks, retrieval_ranks
from smke_jax.evaluation.retrieval import retrieval_metrics


class Retrieval(NamedTuple):
    """Metrics, and the ranks and embeddings they were computed from."""

    metrics: dict
    ranks: Ranks
    images: np.ndarray  # (N, D), L2-normalised
    texts: np.ndarray  # (M, D), L2-normalised
    caption_image: np.ndarray  # (M,) row of each caption's image
    captions: list[str]  # M


def evaluate_retrieval(encode, params, source, tokenizer, config, mesh, *, dataset: str) -> Retrieval:
    """Image-text retrieval over all images and all captions of `source` (spec 23).

    `encode` comes from `make_encoder` of the student pass; `dataset` names the split in the protocol string.
    """
    captions = [caption for i in range(len(source)) for caption in source[i].captions]
    caption_image = np.repeat(np.arange(len(source)), source.num_captions)
    common = {"batch_size": divisible(config.eval.batch_size, mesh), "mesh": mesh}
    images = embed_images(
        encode, params, source, name=f"image/{config.eval.level}", image_size=config.student.image.image_size,
        threads=config.data.threads, **common,
    )  # fmt: skip
    texts = embed_texts(
        encode, params, captions, tokenizer, name=f"text/{config.eval.level}", max_length=config.data.max_length,
        **common,
    )  # fmt: skip
    protocol = (
        f"{dataset}, any-of-n, cosine of '{config.eval.level}', "
        f"{config.student.image.image_size} px squashed, {config.data.max_length} tokens"
    )
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    ranks = retrieval_ranks(images, texts, caption_image)
    metrics = retrieval_metrics(images, texts, caption_image, protocol=protocol, ranks=ranks)
    return Retrieval(metrics, ranks, images, texts, caption_image, captions)
