"""Contrastive losses on embeddings.  Every function sees this device's rows and gathers what it compares with."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import gather, global_rows


def normalise(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """L2-normalised rows in fp32.  (…, D) -> (…, D)."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps))


def info_nce(
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    *,
    axis: str | None = None,
    ids: jax.Array | None = None,
    extra: jax.Array | None = None,
    extra_valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of each query against all keys, its own key (same row) being the class.

    queries, keys (b, D): L2-normalised rows of this device; keys are gathered to (B, D).
    scale: inverse temperature, scalar.
    ids (b,): with them, other rows of the same image are no negatives.
    extra (K, D), extra_valid (b, K) bool: further negatives, alike on every device (a memory bank).
    -> (mean loss, accuracy) over this device's rows, fp32.  Source: spec 0.2 (ClipLoss), 14, 15.
    """
    all_keys = gather(keys, axis)
    rows = global_rows(len(queries), axis)
    # Scaled before masking: the gradient of scale would otherwise be 0 * -inf.
    logits = scale * _products(queries, all_keys)
    if ids is not None:
        same = ids[:, None] == gather(ids, axis)
        own = rows[:, None] == jnp.arange(len(all_keys))
        logits = jnp.where(same & ~own, -jnp.inf, logits)
    if extra is not None:
        more = scale * _products(queries, extra)
        logits = jnp.concatenate([logits, jnp.where(extra_valid, more, -jnp.inf)], axis=1)
    own_logit = jnp.take_along_axis(logits, rows[:, None], axis=1)[:, 0]
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - own_logit)
    accuracy = jnp.mean((jnp.argmax(logits, axis=1) == rows).astype(jnp.float32))
    return loss, accuracy


def symmetric_info_nce(
    a: jax.Array, b: jax.Array, scale: jax.Array, *, axis: str | None = None, ids: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Mean of both directions of `info_nce` -> (loss, accuracy).  Source: spec 0.2 (ClipLoss)."""
    ab, accuracy_ab = info_nce(a, b, scale, axis=axis, ids=ids)
    ba, accuracy_ba = info_nce(b, a, scale, axis=axis, ids=ids)
    return (ab + ba) / 2, (accuracy_ab + accuracy_ba) / 2


def _products(a, b):
    # Full fp32: the 10-bit products that accelerators default to, times a scale of 100, would blur the softmax.
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
