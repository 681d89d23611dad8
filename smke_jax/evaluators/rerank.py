"""Retrieval in two stages: cosines find the best k of each query, and a fusion encoder orders these anew (spec B.3)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from smke_jax.errors import UserError
from smke_jax.evaluators.base import Encode, Evaluator, Figures
from smke_jax.evaluators.ranks import RECALL_AT, Ranks
from smke_jax.evaluators.recalls import DIRECTIONS, recall_figures
from smke_jax.evaluators.retrieval import retrieve
from smke_jax.limits import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Entries
from smke_jax.tasks.base import Column, Split, Task, some_rows

MATCH = "pair/match"
STATES = {"image": "image/states", "text": "text/states"}
KS = Entries(int, None, AT_LEAST_1)


def rerank(
    *,
    split: str = "dev",
    level: str = "out",
    k: int = 128,
    sweep: tuple[int, ...] = (),
    cosine_weight: float = 0.0,
    memory_mib: float = 1024.0,
    every: int = 0,
) -> Evaluator:
    """Recalls of the first stage, by the cosine of '{image,text}/<level>', and of its best k ordered by the match.

    The score of a pair is the logit of a match less that of no match in 'pair/match' (N, 2).  Equal scores keep the
    order of the gallery.  What is not among the best k of a query keeps its place after them: recall at K is at most
    the first stage's recall at the larger of k and K, which is checked.
    k:          of each query; a smaller gallery is ordered as a whole
    sweep:      further k, whose recalls cost nothing more up to the largest of all
    cosine_weight: above 0, the score of a pair is that of the match and so many times the cosine of the first stage, as
                in BLIP's evaluation (1.0); a learned contrast's scale, 10 to 100, weighs both as logits
    memory_mib: of the tokens of images and captions that are held at once on the host.  Where those of the split do not
                fit, captions are encoded again for each block of images
    Source: ALBEF's evaluation, which compares the same.  Checkpoints are ranked by the sum of recalls at `k`.
    """
    AT_LEAST_1.check("k", k)
    KS.check("sweep", sweep)
    ABOVE_0.check("memory_mib", memory_mib)
    AT_LEAST_0.check("cosine_weight", cosine_weight)
    ks = tuple(sorted({k, *sweep}))
    also = f" + {cosine_weight:g} × cosine" if cosine_weight else ""

    def run(encode: Encode, task: Task, on: Split) -> Figures:
        found = retrieve(encode, on, level, ks[-1])
        best = dict(zip(DIRECTIONS, found.best, strict=True))
        pairs = _pairs(best, len(found.texts))
        scores = _scores_of(best, pairs, match_scores(encode, on, pairs, memory_mib=memory_mib), len(found.texts))
        if cosine_weight:
            scores = {d: scores[d] + cosine_weight * x for d, x in _cosines_of(best, found.images, found.texts).items()}
        owners = found.caption_image
        right = {
            "image_to_text": owners[best["image_to_text"]] == np.arange(len(found.images))[:, None],
            "text_to_image": best["text_to_image"] == owners[:, None],
        }
        stages, arrays = {}, {f"first_{d}": getattr(found.ranks, d).astype(np.int32) for d in DIRECTIONS}
        for depth in ks:
            lists = {d: [x[d][:, :depth] for x in (best, scores, right)] for d in DIRECTIONS}
            ranks = Ranks(*(reranked(getattr(found.ranks, d), *lists[d]) for d in DIRECTIONS), owners)
            check_bound(found.ranks, ranks, depth)
            stages[str(depth)] = recall_figures(ranks)
            prefix = "" if depth == k else f"at_{depth}_"
            arrays |= {f"{prefix}{name}": x.astype(np.int32) for name, x in ranks._asdict().items()}
        said = stages[str(k)]
        scalars = {f"{d}/{key}": value for d in DIRECTIONS for key, value in said[d].items()}
        scalars |= {f"first/{d}/{key}": v for d in DIRECTIONS for key, v in found.metrics[d].items()}
        scalars["recall_sum"] = said["recall_sum"]
        record = {
            "protocol": f"{found.metrics['protocol']}; the best {k} of each query ordered by the match{also}",
            "n_images": len(found.images), "n_captions": len(found.texts), "pairs_scored": len(pairs),
            **said, "first_stage": found.metrics, "reranked": stages,
        }  # fmt: skip
        return Figures(scalars, record, arrays, _table(record))

    def check(task: Task, on: Split) -> None:
        if "text" not in on.columns or "caption_image" not in on.facts:
            raise UserError(f"rerank reads images and their captions: {on.name} has none")

    needs = (f"image/{level}", f"text/{level}", MATCH, *STATES.values())
    return Evaluator(needs, run, split, every, best="recall_sum", check=check, stored=False)


def match_scores(encode: Encode, on: Split, pairs: np.ndarray, *, memory_mib: float) -> np.ndarray:
    """Of pairs (P, 2), rows of images and of captions, sorted -> (P,) float32: how much more likely a match than not.

    Every image is encoded once.  The fused tokens of no more than a batch are held at once.  Raises UserError where a
    score is not finite.
    """
    scores = np.empty(len(pairs), np.float32)
    rows = {side: on.columns[side].rows for side in STATES}
    blocks = {side: _block(encode, on, side, memory_mib) for side in STATES}
    texts: tuple[int, np.ndarray, np.ndarray] | None = None
    for first in range(0, rows["image"], blocks["image"]):
        images = None
        in_block = (pairs[:, 0] >= first) & (pairs[:, 0] < first + blocks["image"])
        for start in range(0, rows["text"], blocks["text"]):
            places = np.flatnonzero(in_block & (pairs[:, 1] >= start) & (pairs[:, 1] < start + blocks["text"]))
            if not len(places):
                continue
            if images is None:
                images = _states(encode, on, "image", first, blocks["image"])
            if texts is None or texts[0] != start:
                texts = None  # let go of before the next block is made
                mask = on.columns["text_mask"].read(range(start, min(start + blocks["text"], rows["text"])))
                texts = start, _states(encode, on, "text", start, blocks["text"]), mask
            here = pairs[places] - (first, start)
            logits = encode((MATCH,), _split_of_pairs(on, images, *texts[1:], here))[MATCH]
            scores[places] = logits[:, 1] - logits[:, 0]
    if bad := np.sum(~np.isfinite(scores)):
        raise UserError(
            f"rerank: {bad} of {len(scores)} match scores are NaN or infinity; the checkpoint or its inputs are "
            "broken, evaluate an earlier checkpoint"
        )
    return scores


def check_bound(first: Ranks, ranks: Ranks, k: int) -> None:
    """AssertionError where re-ranking the best `k` has a recall above what the first stage holds."""
    for direction in DIRECTIONS:
        before, after = getattr(first, direction), getattr(ranks, direction)
        for at in RECALL_AT:
            most = np.mean(before <= max(k, at))
            if np.mean(after <= at) > most:
                raise AssertionError(f"{direction} recall at {at} is above the first stage's at {max(k, at)}: {most}")


def reranked(first: np.ndarray, best: np.ndarray, scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Ranks (Q,), from 1, of the best right answer when the `best` (Q, k) of each query are ordered by `scores` (Q, k).

    right (Q, k) bool.  Of equal scores the smaller row of the gallery comes first.  Where none of them is right, the
    rank of the first stage (Q,) stays.
    """
    own = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    tied = scores == own
    place = np.where(right & tied, best, np.iinfo(best.dtype).max).min(axis=1, keepdims=True)
    ranks = 1 + ((scores > own) | (tied & (best < place))).sum(axis=1)
    return np.where(right.any(axis=1), ranks, first)


def _pairs(best: Mapping[str, np.ndarray], texts: int) -> np.ndarray:
    """Every pair of either list once, (P, 2) rows of images and of captions, sorted."""
    found = [(np.arange(len(best["image_to_text"]))[:, None] * texts + best["image_to_text"]).ravel()]
    found.append((best["text_to_image"] * texts + np.arange(len(best["text_to_image"]))[:, None]).ravel())
    return np.stack(np.divmod(np.unique(np.concatenate(found)), texts), axis=1)


def _scores_of(best: Mapping[str, np.ndarray], pairs: np.ndarray, scores: np.ndarray, texts: int):
    """{direction: (Q, k)}: the scores of the pairs in each list."""
    codes = pairs[:, 0] * texts + pairs[:, 1]
    numbers = {direction: np.arange(len(best[direction]))[:, None] for direction in DIRECTIONS}
    wanted = {
        "image_to_text": numbers["image_to_text"] * texts + best["image_to_text"],
        "text_to_image": best["text_to_image"] * texts + numbers["text_to_image"],
    }
    return {direction: scores[np.searchsorted(codes, x)] for direction, x in wanted.items()}


def _cosines_of(best: Mapping[str, np.ndarray], images: np.ndarray, texts: np.ndarray) -> dict[str, np.ndarray]:
    """{direction: (Q, k)}: the cosines of the pairs in each list; images (N, D) and texts (M, D) of length 1."""
    sides = {"image_to_text": (images, texts), "text_to_image": (texts, images)}
    return {
        d: np.stack([gallery[rows] @ query for query, rows in zip(queries, best[d], strict=True)])
        for d, (queries, gallery) in sides.items()
    }


def _block(encode: Encode, on: Split, side: str, memory_mib: float) -> int:
    """How many rows of a modality fit into half of the memory."""
    return max(1, int(memory_mib / 2 * 2**20 / _states(encode, on, side, 0, 1).nbytes))


def _states(encode: Encode, on: Split, side: str, first: int, count: int) -> np.ndarray:
    return encode((STATES[side],), some_rows(on, first, count))[STATES[side]]


def _split_of_pairs(on: Split, images: np.ndarray, texts: np.ndarray, mask: np.ndarray, pairs: np.ndarray) -> Split:
    """A split of which a row is a pair."""
    columns = {
        STATES["image"]: Column(len(pairs), lambda rows: images[pairs[rows, 0]]),
        STATES["text"]: Column(len(pairs), lambda rows: texts[pairs[rows, 1]]),
        "text_mask": Column(len(pairs), lambda rows: mask[pairs[rows, 1]]),
    }
    return Split(on.name, on.digest, columns)


def _table(record: Mapping[str, Any]) -> str:
    """Recalls of the first stage and of every k, in percent."""
    names = {d: d.replace("_to_", " -> ") for d in DIRECTIONS}
    heads = "".join(f"{f'{names[d]} R@{at}':>24}" for d in DIRECTIONS for at in RECALL_AT)
    lines = [f"protocol: {record['protocol']}", f"{'':14}{heads}"]
    rows = {"first stage": record["first_stage"], **{f"best {k}": x for k, x in record["reranked"].items()}}
    for name, figures in rows.items():
        values = "".join(f"{figures[d][f'r{at}']:24.2f}" for d in DIRECTIONS for at in RECALL_AT)
        lines.append(f"{name:14}{values}")
    return "\n".join(lines)
