"""Exact ranks and exact top-k over a score matrix that is never held whole."""

import jax
import numpy as np

from smke_jax.errors import UserError


def finite_rows(embeddings, name: str) -> np.ndarray:
    """`embeddings` as fp32 (rows, D); UserError when it is not a non-empty matrix of finite numbers."""
    # fp32 whatever comes in: bfloat16 products would tie thousands of captions with each other.
    rows = np.asarray(embeddings).astype(np.float32)
    if rows.ndim != 2 or 0 in rows.shape:
        raise UserError(f"{name} has shape {rows.shape}: give a non-empty matrix, one row per item")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UserError(
            f"{name}: {len(bad)} of {len(rows)} rows hold NaN or infinity (first: row {bad[0]}); "
            "the checkpoint or its inputs are broken, evaluate an earlier checkpoint"
        )
    return rows


def match_ranks(queries, gallery, query_image, gallery_image, *, chunk_size: int = 1024) -> np.ndarray:
    """Rank (from 1) of the best own gallery row of each query; "own" means the same image index.

    queries (Q, D), gallery (N, D), query_image (Q,), gallery_image (N,); returns (Q,) int64. Every query
    needs at least one own row. rank = 1 + rows scoring strictly higher + foreign rows that score the same and
    have a smaller index: the place a stable descending sort gives. Holds `chunk_size` x N scores at a time.
    """
    return ranks_and_best(queries, gallery, query_image, gallery_image, 0, chunk_size=chunk_size)[0]


def ranks_and_best(queries, gallery, query_image, gallery_image, k, *, chunk_size: int = 1024):
    """`match_ranks` (Q,), and the best `k` rows of the gallery (Q, k) int64 as of `top_matches`, by the same scores.

    The rank of a query is at most k exactly where one of its best k is its own: scores computed apart could differ
    in the last bit.
    """
    _check_chunk(chunk_size)
    index = np.arange(len(gallery))
    ranks, best_rows = np.empty(len(queries), np.int64), np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), chunk_size):
        rows = slice(start, start + chunk_size)
        # The own score is read out of the same product: computed apart, it could differ in the last bit.
        scores = queries[rows] @ gallery.T
        own = np.asarray(query_image)[rows, None] == np.asarray(gallery_image)
        best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
        tied = scores == best
        first_own = np.argmax(own & tied, axis=1)[:, None]
        ahead = (scores > best) | (tied & (index < first_own))
        ranks[rows] = 1 + ahead.sum(axis=1)
        if k:
            best_rows[rows] = np.asarray(jax.lax.top_k(scores, k)[1])  # leftmost first among equals
    return ranks, best_rows


def top_matches(queries, gallery, k: int, chunk_size: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """The `k` highest-scoring gallery rows of each query, exactly, best first.

    queries (Q, D), gallery (N, D) -> indices (Q, k) int64, scores (Q, k) fp32 dot products. Equal scores keep
    the order of the gallery. At most `chunk_size` x (`chunk_size` + k) scores exist at a time, so the gallery
    may be large. Raises UserError for k outside 1..N and for embeddings that are not finite.
    """
    _check_chunk(chunk_size)
    queries, gallery = finite_rows(queries, "queries"), finite_rows(gallery, "gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise UserError(
            f"queries have {queries.shape[1]} features, the gallery {gallery.shape[1]}: "
            "both must come from the same model"
        )
    if not 1 <= k <= len(gallery):
        raise UserError(f"k={k}: ask for 1 to {len(gallery)} matches, the size of the gallery")
    found = [
        _top_of_chunk(queries[start : start + chunk_size], gallery, k, chunk_size)
        for start in range(0, len(queries), chunk_size)
    ]
    return np.concatenate([indices for indices, _ in found]), np.concatenate([scores for _, scores in found])


def _top_of_chunk(queries, gallery, k, chunk_size):
    """Top k of a few queries, merging one stretch of the gallery after another into the best so far."""
    indices = np.empty((len(queries), 0), np.int64)
    scores = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(gallery), chunk_size):
        fresh = queries @ gallery[start : start + chunk_size].T
        fresh_indices = np.broadcast_to(np.arange(start, start + fresh.shape[1]), fresh.shape)
        # The best so far come first: they have smaller indices, which is what decides between equal scores.
        scores = np.concatenate([scores, fresh], axis=1)
        indices = np.concatenate([indices, fresh_indices], axis=1)
        places = np.asarray(jax.lax.top_k(scores, min(k, scores.shape[1]))[1])  # leftmost first among equals
        scores = np.take_along_axis(scores, places, axis=1)
        indices = np.take_along_axis(indices, places, axis=1)
    return indices, scores


def _check_chunk(chunk_size):
    if chunk_size < 1:
        raise UserError(f"chunk_size={chunk_size}: must be at least 1")
