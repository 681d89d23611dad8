"""Contrastive losses on embeddings.  Each takes the rows of this device and compares them with those of all devices."""

import functools

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import ALONE, Scope, gather, global_rows, own_rows
from smke_jax.losses.pairs import EXCLUDED, LOG_SUM_EXP, SUM_SOFTPLUS, Affine, Rows, Totals, dot_products, totals_of
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
    hard: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of each query over the keys of all devices.  The key in the query's row is the right one.

    queries, keys (b, D): L2-normalised rows of this device.
    scale (): inverse temperature.
    ids (b,): ids of the images.  With them, other rows of the query's image are no negatives.
    fixed_keys: the keys get no gradient.
    bank: more negatives, which get no gradient: (rows of a memory bank, ids (b,) of the queries, scope of the devices
      over which the bank is spread).  Bank rows with the query's id are no negatives.  The scope is ALONE where every
      device holds the whole bank.
    hard (b, k, D): L2-normalised negatives of each query alone, which get no gradient.
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
    if hard is not None:
        more = _hard_totals(queries, hard, scale)
        negatives, hardest = jnp.logaddexp(negatives, more.total), jnp.maximum(hardest, more.largest)
    return _cross_entropy(own, negatives, hardest)


def hard_info_nce(
    queries: jax.Array, keys: jax.Array, hard: jax.Array, scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of each query over its own key and negatives of its own -> (loss, accuracy) as in `info_nce`.

    -log(e^own / (e^own + Σₖ e^hardₖ)).  queries, keys (b, D), hard (b, k, D): L2-normalised; `hard` gets no gradient.
    Source: spec A.3, L_HN.
    """
    return _cross_entropy(_own_logits(queries, keys, scale), *_hard_totals(queries, hard, scale))


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


def multi_positive_info_nce(
    a: jax.Array, b: jax.Array, scale: jax.Array, *, ids: jax.Array, scope: Scope = ALONE
) -> tuple[jax.Array, jax.Array]:
    """`symmetric_info_nce` in which every row of the other side with the query's id is a right one.

    The loss of a query is the mean over its right rows of -log softmax over all rows of the other side.
    ids (b,): ids of the images.  The other arguments are those of `symmetric_info_nce`.
    -> the mean (loss, accuracy) of both directions, over this device's rows, float32.  A query counts as right if the
    key in its own row is nearer than every row of another image; a tie is wrong.
    Source: Khosla et al. 2020, "Supervised Contrastive Learning", eq. 2, there among the views of one modality.
    """
    own, how = _own_logits(a, b, scale), {"affine": Affine(scale), "reduction": LOG_SUM_EXP, "scope": scope}
    losses = []
    for queries, keys, others in zip((a, b), (b, a), symmetric_totals(*_rows(a, b, None, scope), **how), strict=True):
        # -log softmax of the own key, plus the own logit less the mean of the right ones, which is that of their mean.
        right, _ = same_image_mean(keys, ids, scope)
        losses.append(jnp.mean(jax.nn.softplus(others.total - own) + _own_logits(queries, keys - right, scale)))
    wrong = symmetric_totals(*jax.lax.stop_gradient(_rows(a, b, ids, scope)), **how)
    return sum(losses) / 2, sum(_accuracy(own, of_wrong.largest) for of_wrong in wrong) / 2


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


def multi_positive_sigmoid_loss(
    a: jax.Array, b: jax.Array, scale: jax.Array, bias: jax.Array, *, ids: jax.Array, scope: Scope = ALONE
) -> tuple[jax.Array, jax.Array]:
    """`sigmoid_loss` in which all pairs of the same image match -> (loss, accuracy) as in `multi_positive_info_nce`.

    ids (b,): ids of the images.  The other arguments are those of `sigmoid_loss`.
    """
    how = {"affine": Affine(scale, bias), "reduction": SUM_SOFTPLUS, "scope": scope}
    own = _own_logits(a, b, scale) + bias
    others = totals(*_rows(a, b, None, scope), **how).total
    # `others` has softplus(logit) of every pair but the own; softplus(-logit) of one that matches is less by its logit.
    right, count = same_image_mean(b, ids, scope)
    matching = count * (_own_logits(a, right, scale) + bias) - own
    wrong = totals(*jax.lax.stop_gradient(_rows(a, b, ids, scope)), **how)
    return jnp.mean(jax.nn.softplus(-own) + others - matching), _accuracy(own, wrong.largest)


def same_image_mean(x: jax.Array, ids: jax.Array, scope: Scope) -> tuple[jax.Array, jax.Array]:
    """For every row here the mean of the rows of all devices with its id, and their number.

    x (b, D), ids (b,): of this device -> ((b, D) float32, (b,) float32).  Every device holds the rows of all devices.
    """
    everywhere = gather(ids, scope)
    _, image = jnp.unique(everywhere, size=len(everywhere), return_inverse=True)  # the same number for the same id
    add = functools.partial(jax.ops.segment_sum, segment_ids=image, num_segments=len(everywhere))
    sums, counts = add(gather(x.astype(jnp.float32), scope)), add(jnp.ones(len(everywhere)))
    own = own_rows(image, scope)
    return sums[own] / counts[own][:, None], counts[own]


def _rows(a, b, ids, scope) -> tuple[Rows, Rows]:
    # Without ids every row counts as an image of its own, so that only its own partner is no negative.
    ids = global_rows(len(a), scope) if ids is None else ids
    return Rows(a, ids), Rows(b, ids)


def _hard_totals(queries, hard, scale) -> Totals:
    dots = dot_products(queries[:, None], jax.lax.stop_gradient(hard))[:, 0]
    return totals_of(scale * dots, LOG_SUM_EXP, axis=1)


def _own_logits(a, b, scale):
    return scale * jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32), axis=-1)


def _cross_entropy(own, negatives, hardest):
    # `negatives` is the log-sum-exp of the negatives alone: -log(e^own / (e^own + e^negatives)).
    return jnp.mean(jax.nn.softplus(negatives - own)), _accuracy(own, hardest)


def _accuracy(own, hardest):
    return jnp.mean((own > hardest).astype(jnp.float32))
