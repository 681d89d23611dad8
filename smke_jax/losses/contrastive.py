"""Contrastive losses on embeddings.  Each takes the rows of this device and compares them with those of all devices."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import ALONE, Scope, gather, global_rows
from smke_jax.losses.pairs import EXCLUDED, LOG_SUM_EXP, SUM_SOFTPLUS, Affine, Rows
from smke_jax.losses.totals import symmetric_totals, totals


def normalise(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """x / ‖x‖ over the last axis, float32; `eps` is the least squared norm.  (…, D) -> (…, D)."""
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
    bank: tuple[Rows, jax.Array, Scope] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of each query over the keys of all devices.  The key in the query's row is the right one.

    queries, keys (b, D): L2-normalised rows of this device.
    scale (): inverse temperature.
    ids (b,): ids of the images.  With them, other rows of the query's image are no negatives.
    fixed_keys: the keys get no gradient.
    bank: more negatives, which get no gradient: (rows of a memory bank, ids (b,) of the queries, scope of the devices
      over which the bank is spread).  Bank rows with the query's id are no negatives.  The scope is ALONE where every
      device holds the whole bank.
    -> (loss, accuracy), means over this device's rows, float32.  A query counts as right if its key is nearer than
    every negative; a tie is wrong.
    Source: spec 0.2 (ClipLoss), 14, 15.
    """
    keys = jax.lax.stop_gradient(keys) if fixed_keys else keys
    own = _own_logits(queries, keys, scale)
    how = {"affine": Affine(scale), "reduction": LOG_SUM_EXP}
    query_rows, key_rows = _rows(queries, keys, ids, scope)
    negatives, hardest = totals(query_rows, key_rows, **how, scope=scope, fixed_keys=fixed_keys)
    if bank is not None:
        stored, query_ids, bank_scope = bank
        more = totals(Rows(queries, query_ids), stored, **how, scope=bank_scope, fixed_keys=True)
        negatives, hardest = jnp.logaddexp(negatives, more.total), jnp.maximum(hardest, more.largest)
    return _cross_entropy(own, negatives, hardest)


def symmetric_info_nce(
    a: jax.Array, b: jax.Array, scale: jax.Array, *, scope: Scope = ALONE, ids: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """`info_nce` with `a` as queries and `b` as keys, and the reverse -> the mean (loss, accuracy) of both.

    Source: spec 0.2 (ClipLoss).
    """
    own = _own_logits(a, b, scale)
    rows = _rows(a, b, ids, scope)
    both = symmetric_totals(*rows, affine=Affine(scale), reduction=LOG_SUM_EXP, scope=scope)
    (loss_ab, accuracy_ab), (loss_ba, accuracy_ba) = (_cross_entropy(own, *direction) for direction in both)
    return (loss_ab + loss_ba) / 2, (accuracy_ab + accuracy_ba) / 2


def matrix_info_nce(
    scores: jax.Array, scale: jax.Array, *, scope: Scope = ALONE, ids: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """`info_nce` from given scores (b, B): of each query here with the keys of all devices, its own key among them."""
    rows = global_rows(len(scores), scope)
    ids = rows if ids is None else ids
    logits = scale * scores
    own = jnp.take_along_axis(logits, rows[:, None], axis=1)[:, 0]
    negatives = jnp.where(ids[:, None] == gather(ids, scope), EXCLUDED, logits)
    hardest = jax.lax.stop_gradient(jnp.max(negatives, axis=1))
    return _cross_entropy(own, jax.nn.logsumexp(negatives, axis=1), hardest)


def sigmoid_loss(
    a: jax.Array,
    b: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    scope: Scope = ALONE,
    ids: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Binary cross entropy of every pair of the global batch: does it match?  -> (loss, accuracy) as in `info_nce`.

    The loss is a sum over the pairs of a row and a mean over rows.  Arguments as in `info_nce`; bias () is added to
    the logits.  Source: SigLIP (Zhai et al. 2023), algorithm 1.
    """
    own = _own_logits(a, b, scale) + bias
    rows = _rows(a, b, ids, scope)
    negatives, hardest = totals(*rows, affine=Affine(scale, bias), reduction=SUM_SOFTPLUS, scope=scope)
    return jnp.mean(jax.nn.softplus(-own) + negatives), _accuracy(own, hardest)


def _rows(a, b, ids, scope) -> tuple[Rows, Rows]:
    # Without ids every row counts as an image of its own, so that only its own partner is no negative.
    ids = global_rows(len(a), scope) if ids is None else ids
    return Rows(a, ids), Rows(b, ids)


def _own_logits(a, b, scale):
    return scale * jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32), axis=-1)


def _cross_entropy(own, negatives, hardest):
    # `negatives` is the log-sum-exp of the negatives alone: -log(e^own / (e^own + e^negatives)).
    return jnp.mean(jax.nn.softplus(negatives - own)), _accuracy(own, hardest)


def _accuracy(own, hardest):
    return jnp.mean((own > hardest).astype(jnp.float32))
