"""Which patch of its photo each word of a caption is nearest to (FILIP, Yao et al. 2022, section 4.5; spec 13)."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from smke_jax.errors import UserError
from smke_jax.evaluators.base import Encode, Evaluator, Figures
from smke_jax.evaluators.top_k import finite_rows
from smke_jax.tasks.base import Split, Task, chosen_rows

ATTENTION = "image/attention"


class Match(NamedTuple):
    """A word and the patch that it is nearest to.

    patch:     its number, row by row
    cosine:    of the two
    attention: (N,), how much the patch looks at each patch in the last layer; [CLS] has the rest of 1
    """

    word: str
    patch: int
    cosine: float
    attention: np.ndarray


def word_patches(
    *, patches: str = "image/tokens", words: str = "text/tokens", count: int = 6, split: str = "dev", every: int = 0
) -> Evaluator:
    """For `count` captions of different photos: each word's nearest patch, for the pictures of a report.

    The figures are means over all of their words of the largest cosine: 'own' with the patches of the caption's photo,
    'other' with those of the next photo among the chosen, and 'gap', the difference.
    patches (B, N, D), words (B, L, D): representations of tokens; N has to be a square
    """
    needs = (patches, ATTENTION, words, "text/mask")

    def run(encode: Encode, task: Task, on: Split) -> Figures:
        if "text" not in on.columns or task.tokenizer is None or "caption_image" not in on.facts:
            raise UserError(f"word_patches reads captions and their photos: {on.name} has none")
        captions, photos = chosen_captions(on.facts["caption_image"], count)
        of_photos = encode((patches, ATTENTION), chosen_rows(on, photos))
        of_texts = encode((words, "text/mask"), chosen_rows(on, captions))
        tokens = finite_rows(of_photos[patches].reshape(len(photos), -1), "patches").reshape(of_photos[patches].shape)
        cosines = word_cosines(of_texts[words], tokens)
        mask = of_texts["text/mask"] > 0
        own, other = (cosines[np.arange(len(photos)), np.roll(np.arange(len(photos)), by)] for by in (0, -1))
        scalars = {name: float(x.max(axis=2)[mask].mean()) for name, x in (("own", own), ("other", other))}
        scalars["gap"] = scalars["own"] - scalars["other"]
        protocol = f"{on.name}, {int(mask.sum())} words of {len(captions)} captions, {words} and {patches}"
        summary = f"{protocol}: " + ", ".join(f"{name} {value:.3f}" for name, value in scalars.items())
        ids = on.columns["text"].read(captions.tolist())[:, 1:-1]
        names = [[task.tokenizer.decode([i]) for i in row] for row in ids]
        side = math.isqrt(tokens.shape[1])
        if side * side != tokens.shape[1]:
            raise UserError(f"{patches} are {tokens.shape[1]} to a photo, which is no square: no picture can show them")
        found = [_matches(*row) for row in zip(names, mask, own, of_photos[ATTENTION], strict=True)]
        texts = [on.facts["captions"][i] for i in captions]
        examples = None
        if "pixels" in on.facts:
            examples = functools.partial(_examples, texts, photos.tolist(), found, on.facts["pixels"])
        return Figures(scalars, {"protocol": protocol, **scalars}, {}, summary, examples)

    return Evaluator(needs, run, split, every, stored=False)


def chosen_captions(caption_image: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(captions, their photos), `count` of each, of different photos, the same at every evaluation."""
    photos = np.unique(caption_image)
    chosen = np.random.default_rng(seed).permutation(photos)[:count]
    firsts = np.array([np.flatnonzero(caption_image == photo)[0] for photo in chosen])
    if len(chosen) < 2:
        raise UserError("word_patches compares photos with each other: give at least two")
    return firsts, chosen


def word_cosines(words: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Words (n, L, D) of n captions and patches (n, N, D) of n photos -> cosines (n, n, L, N), of every pair."""
    words, patches = (x / np.maximum(np.linalg.norm(x, axis=2, keepdims=True), 1e-12) for x in (words, patches))
    return np.einsum("ald,bnd->abln", words, patches)


def _matches(names: Sequence[str], mask: np.ndarray, cosines: np.ndarray, attention: np.ndarray) -> list[Match]:
    """Of one caption: cosines (L, N), attention (N + 1, N + 1) of [CLS] and the patches."""
    best = cosines.argmax(axis=1)
    return [
        Match(name, int(patch), float(cosines[i, patch]), attention[1 + patch, 1:])
        for i, (name, patch) in enumerate(zip(names, best, strict=True))
        if mask[i]
    ]


def _examples(texts, photos, found, picture: Callable[[int], np.ndarray]) -> dict:
    return {"words": [(picture(i), text, matches) for i, text, matches in zip(photos, texts, found, strict=True)]}
