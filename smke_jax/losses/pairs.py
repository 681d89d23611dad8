"""Logits of pairs of rows, and the total of each row over its negatives: the parts of every contrastive loss.

A row is the embedding of one example.  A pair is a row of one set and a row of another set; its logit is
scale · dot product + bias.  The negatives of a row are the rows of the other set with another id.  The total of a row
is a reduction of its logits with its negatives, such as their log-sum-exp.
This file knows the rows of one device; `totals.py` computes totals over the rows of all devices.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

NOBODY = -1  # id of a row that is no negative of any row: an unfilled slot of a memory bank, or padding
EXCLUDED = -1e30  # the logit of a pair that is no negative; -inf would give NaN gradients to a row without negatives
# Precision of every product of embeddings, whatever the loss: float32 on a CPU, three bfloat16 passes on a TPU, TF32 on
# a GPU.  A contrastive gradient's error is then 7e-6 on a TPU and 5e-4 on a GPU; bfloat16 towers make an error of 2e-3
# to 4e-3 themselves (studies/benchmarks/logit_precision.md).  `HIGHEST` would keep a GPU from its tensor cores.
PRODUCTS = jax.lax.Precision.HIGH
BLOCK = 2**23  # most logits (32 MiB in float32) of a block, wherever a loss computes its logits block by block


class Rows(NamedTuple):
    """Embeddings and ids.  Rows with different ids are negatives of each other, unless an id is NOBODY."""

    features: jax.Array  # (b, D)
    ids: jax.Array  # (b,) int32


class Affine(NamedTuple):
    """logit = scale · dot product + bias."""

    scale: jax.Array  # ()
    bias: jax.Array | float = 0.0


class Reduction(NamedTuple):
    """How the logits of a row become its total.

    reduce:     (logits, axis) -> totals
    combine:    (totals of parts of the logits, axis) -> totals of all logits
    derivative: (logits, totals) -> d total / d logit, for each logit
    empty:      the total of no logits
    """

    reduce: Callable[[jax.Array, int], jax.Array]
    combine: Callable[[jax.Array, int], jax.Array]
    derivative: Callable[[jax.Array, jax.Array], jax.Array]
    empty: float


LOG_SUM_EXP = Reduction(
    jax.nn.logsumexp,
    jax.nn.logsumexp,
    lambda logits, total: jnp.exp(logits - total),
    EXCLUDED,
)
SUM_SOFTPLUS = Reduction(
    lambda logits, axis: jnp.sum(jax.nn.softplus(logits), axis=axis),
    jnp.sum,
    lambda logits, total: jax.nn.sigmoid(logits),
    0.0,
)
SUM_RELU = Reduction(
    lambda logits, axis: jnp.sum(jax.nn.relu(logits), axis=axis),
    jnp.sum,
    lambda logits, total: (logits > 0).astype(jnp.float32),
    0.0,
)


class Totals(NamedTuple):
    """What a loss needs to know of the logits of each row, float32."""

    total: jax.Array  # (b,)
    largest: jax.Array  # (b,) the largest logit, without gradient


def dot_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """(…, m, D), (…, n, D) -> (…, m, n) float32, in the precision PRODUCTS."""
    return jnp.matmul(a, b.mT, precision=PRODUCTS, preferred_element_type=jnp.float32)


def are_negatives(a_ids: jax.Array, b_ids: jax.Array) -> jax.Array:
    """Which pairs of rows are negatives of each other.  (m,), (n,) -> (m, n) bool."""
    return (a_ids[:, None] != b_ids) & (a_ids[:, None] != NOBODY) & (b_ids != NOBODY)


def masked_logits(a: Rows, b: Rows, affine: Affine) -> jax.Array:
    """Logits of every row of `a` with every row of `b`, EXCLUDED where these are no negatives -> (m, n) float32."""
    # The mask comes after the scale.  Otherwise the gradient by the scale would be 0 · EXCLUDED.
    logits = affine.scale * dot_products(a.features, b.features) + affine.bias
    return jnp.where(are_negatives(a.ids, b.ids), logits, EXCLUDED)


def totals_of(logits: jax.Array, reduction: Reduction, *, axis: int) -> Totals:
    """Totals of logits (m, n) along `axis`: of the m rows for axis 1, of the n rows for axis 0."""
    return Totals(reduction.reduce(logits, axis), jax.lax.stop_gradient(jnp.max(logits, axis=axis)))


def combined(parts: Totals, reduction: Reduction) -> Totals:
    """Totals of all logits from the totals of parts of them.  (parts, b) -> (b,)."""
    return Totals(reduction.combine(parts.total, 0), jax.lax.stop_gradient(jnp.max(parts.largest, axis=0)))
