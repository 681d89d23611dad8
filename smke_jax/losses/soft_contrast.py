"""Contrast with soft targets: what is right, mixed with what a slow encoder finds alike (ALBEF, Li et al. 2021)."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import ALONE, Scope, global_rows
from smke_jax.losses.pairs import EXCLUDED, NOBODY, dot_products


def soft_contrast(
    queries: jax.Array,
    slow_queries: jax.Array,
    candidates: jax.Array,
    scale: jax.Array,
    *,
    share: jax.Array | float,
    ids: jax.Array,
    candidate_ids: jax.Array,
    same_image: bool,
    scope: Scope = ALONE,
) -> tuple[jax.Array, jax.Array]:
    """Mean over the queries here of -Σ_j t_j log softmax_j(scale · query · candidate_j) -> (loss, accuracy).

    t = (1 - share) · right + share · softmax(scale · slow query · candidate), without gradient.
    queries, slow_queries (b, D): L2-normalised rows of this device.  candidates (B + K, D): L2-normalised, without
    gradient, those of the global batch first, in its order.
    ids (b,), candidate_ids (B + K,): of the images; a candidate whose id is NOBODY is none.
    same_image: whether all candidates of a query's image are right, in equal parts, or only the query's own partner
    accuracy: how often the candidate of the largest logit is right
    Source: ALBEF, eq. 6, whose code takes the one temperature for both softmaxes.
    """
    there = candidate_ids != NOBODY
    if same_image:
        right = ((ids[:, None] == candidate_ids) & there).astype(jnp.float32)
        right /= right.sum(axis=1, keepdims=True)
    else:
        right = jax.nn.one_hot(global_rows(len(ids), scope), len(candidate_ids))
    logits = jnp.where(there, scale * dot_products(queries, candidates), EXCLUDED)
    slow = jnp.where(there, scale * dot_products(slow_queries, candidates), EXCLUDED)
    target = jax.lax.stop_gradient((1 - share) * right + share * jax.nn.softmax(slow))
    # 0 · EXCLUDED is a zero of either sign, and the softmax of an excluded candidate is exactly 0.
    loss = jax.nn.logsumexp(logits, axis=1) - jnp.sum(target * jnp.where(there, logits, 0.0), axis=1)
    best = jnp.argmax(logits, axis=1)[:, None]
    return jnp.mean(loss), jnp.mean((jnp.take_along_axis(right, best, axis=1) > 0).astype(jnp.float32))
