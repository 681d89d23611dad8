"""Contrastive losses on embeddings.  Every function sees this device's rows and compares with those of all devices."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import ALONE, Scope, global_rows
from smke_jax.losses.pairs import LOG_SUM_EXP, SUM_SOFTPLUS, Affine, Side, symmetric_totals, totals


def normalise(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """L2-normalised rows in fp32.  (…, D) -> (…, D)."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps))


def info_nce(
    queries: jax.Array,
    keys: jax.Array,
    scale: jax.Array,
    *,
    scope: Scope = ALONE,
    ids: jax.Array | None = None,
    fixed_keys: bool = False,
    bank: tuple[Side, jax.Array, Scope] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of each query against the keys of all devices, its own key (same row) being the class.

    queries, keys (b, D): L2-normalised rows of this device.
    scale: inverse temperature, scalar.
    ids (b,): with them, other rows of the same image are no negatives.
    fixed_keys: the keys get no gradient.
    bank: further negatives without gradient, the ids (b,) of the queries among them, and the scope that the bank is
      spread over (ALONE where every device holds the whole of it).
    -> (mean loss, accuracy) over this device's rows, fp32.  A query is right if no negative is as near as its key.
    Source: spec 0.2 (ClipLoss), 14, 15.
    """
    keys = jax.lax.stop_gradient(keys) if fixed_keys else keys
    own = _own_logits(queries, keys, scale)
    a, b = _sides(queries, keys, ids, scope)
    others, best = totals(a, b, Affine(scale), LOG_SUM_EXP, scope, fixed_keys=fixed_keys)
    if bank is not None:
        stored, query_ids, spread = bank
        more = totals(Side(queries, query_ids), stored, Affine(scale), LOG_SUM_EXP, spread, fixed_keys=True)
        others, best = jnp.logaddexp(others, more.total), jnp.maximum(best, more.best)
    return _cross_entropy(own, others, best)


def symmetric_info_nce(
    a: jax.Array, b: jax.Array, scale: jax.Array, *, scope: Scope = ALONE, ids: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Mean of both directions of `info_nce` -> (loss, accuracy).  Source: spec 0.2 (ClipLoss)."""
    own = _own_logits(a, b, scale)
    both = symmetric_totals(*_sides(a, b, ids, scope), Affine(scale), LOG_SUM_EXP, scope)
    (loss_ab, accuracy_ab), (loss_ba, accuracy_ba) = (_cross_entropy(own, *one) for one in both)
    return (loss_ab + loss_ba) / 2, (accuracy_ab + accuracy_ba) / 2


def sigmoid_loss(
    a: jax.Array,
    b: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    scope: Scope = ALONE,
    ids: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Every pair of the global batch classified by itself: matching or not.  -> (mean over rows, accuracy as above).

    Arguments as in `info_nce`; `bias` is a scalar.  Source: SigLIP (Zhai et al. 2023), algorithm 1.
    """
    own = _own_logits(a, b, scale) + bias
    others, best = totals(*_sides(a, b, ids, scope), Affine(scale, bias), SUM_SOFTPLUS, scope)
    return jnp.mean(jax.nn.softplus(-own) + others), _accuracy(own, best)


def _sides(a, b, ids, scope) -> tuple[Side, Side]:
    # Rows are numbered where images do not matter: then a row is left out of its own negatives, and nothing else.
    ids = global_rows(len(a), scope) if ids is None else ids
    return Side(a, ids), Side(b, ids)


def _own_logits(a, b, scale):
    return scale * jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32), axis=-1)


def _cross_entropy(own, others, best):
    # -log(e^own / (e^own + e^others)), with the sum over the negatives alone.
    return jnp.mean(jax.nn.softplus(others - own)), _accuracy(own, best)


def _accuracy(own, best):
    return jnp.mean((own > best).astype(jnp.float32))
