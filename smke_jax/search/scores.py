"""Exact scores over fp16 rows that stay in their file: a block at a time, in NumPy.

NumPy turns fp16 into fp32 one number at a time.  Here the bits of a whole block are shifted into place at once, and the
query takes the scale that is then missing: the same to the last bit, and several times as fast.
"""

from collections.abc import Iterator

import numpy as np

BLOCK = 512  # rows: their fp32 stays in the processor's cache
SIGN_AND_MAGNITUDE = np.int32(-0x7000_2000)  # bits of fp32 that a shifted fp16 fills, 0x8fffe000
SCALE = np.float32(2.0**112)  # between an fp16 and the fp32 of its shifted bits


def scores_of(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Dot products of fp16 rows (N, D) with fp32 queries (Q, D) -> fp32 (N, Q).

    No row holds NaN or infinity: what stands for these is read as a number of at least 65,536.
    """
    found = np.empty((len(rows), len(queries)), np.float32)
    scaled = np.ascontiguousarray(queries.astype(np.float32).T) * SCALE
    bits = np.empty((BLOCK, rows.shape[1]), np.int32)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK].view("<i2")
        np.matmul(_widened(block, bits).view(np.float32), scaled, out=found[start : start + len(block)])
    return found


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the `k` highest of the scores (N,), best first; equal ones in their order."""
    if k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= least)
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")][:k]


def alike(rows: np.ndarray, numbers: np.ndarray, least: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The pairs among the rows `numbers` (M,) of fp16 (N, D) that score `least` or more, a block at a time.

    Yields positions in `numbers` i < j and scores.  Every row is compared with every other one, and two blocks of rows
    exist at a time.
    """
    side = 4 * BLOCK
    for start in range(0, len(numbers), side):
        left = rows[numbers[start : start + side]].astype(np.float32)
        for other in range(start, len(numbers), side):
            products = left @ rows[numbers[other : other + side]].astype(np.float32).T
            i, j = np.nonzero(products >= least)
            ahead = i + start < j + other
            i, j = i[ahead], j[ahead]
            if len(i):
                yield i + start, j + other, products[i, j]


def _widened(block: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """fp16 as int16 (n, D) -> int32 whose fp32 is 1 / SCALE of it; `bits` is overwritten."""
    bits = bits[: len(block)]
    np.copyto(bits, block)
    np.left_shift(bits, 13, out=bits)
    return np.bitwise_and(bits, SIGN_AND_MAGNITUDE, out=bits)
