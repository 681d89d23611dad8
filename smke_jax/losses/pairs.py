"""Totals over all pairs of a row here with a row anywhere, the heart of every contrastive loss.

Two exact forms.  *gather* copies the rows of all devices to each and writes out its share of the matrix of logits.
*ring* passes the rows around, device by device, with the totals of each row travelling along, and computes the logits
block by block, again in the backward pass: memory for one block, one rotation for both directions of a symmetric loss.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import Scope, as_varying, gather, own_rows, pass_on, size

NOBODY = -1  # the id of a row that is no candidate: an unfilled slot, or padding
EXCLUDED = -1e30  # finite: -inf would turn the gradients of rows without candidates into NaN
RING_FROM = 2**26  # logits per device (256 MiB in fp32) from which on 'auto' takes the ring
BLOCK = 2**23  # most logits of a block of the ring (32 MiB)


class Reduction(NamedTuple):
    """How the logits of a row become its total, along an axis, and how totals of parts become one.

    `slope` is the derivative of the total by each logit, `start` the total of no logits.
    """

    of: Callable[[jax.Array, int], jax.Array]
    join: Callable[[jax.Array, int], jax.Array]
    slope: Callable[[jax.Array, jax.Array], jax.Array]
    start: float


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


class Side(NamedTuple):
    """Rows of this device.  A pair of rows with the same id is left out, and so is every pair with a row NOBODY."""

    rows: jax.Array  # (b, D)
    ids: jax.Array  # (b,) int32


class Affine(NamedTuple):
    """logit = scale · dot product + bias."""

    scale: jax.Array  # ()
    bias: jax.Array | float = 0.0


class Totals(NamedTuple):
    total: jax.Array  # (b,)
    best: jax.Array  # (b,) the largest logit, without gradient


def totals(
    queries: Side, keys: Side, affine: Affine, reduction: Reduction, scope: Scope, *, fixed_keys: bool = False
) -> Totals:
    """Of every query here with the keys of all devices -> (b,) each, fp32.

    `fixed_keys` promises that no gradient is asked of the keys, which spares a third of the ring's backward pass.
    """
    if _use_ring(len(queries.ids), len(keys.ids), scope):
        return _ring(keys, queries, affine, reduction, scope, both=False, fixed_stay=fixed_keys)[1]
    if len(keys.ids) <= len(queries.ids):
        keys = Side(gather(keys.rows, scope), gather(keys.ids, scope))
        return _of_rows(_masked_logits(queries, keys, affine), reduction)
    # More keys than queries, as in a memory bank: the queries travel, and their totals come home.
    queries = Side(gather(queries.rows, scope), gather(queries.ids, scope))
    parts = _of_rows(_masked_logits(queries, keys, affine), reduction)
    joined = _join(Totals(*(gather(part[None], scope) for part in parts)), reduction)
    return Totals(*(own_rows(part, scope) for part in joined))


def symmetric_totals(a: Side, b: Side, affine: Affine, reduction: Reduction, scope: Scope) -> tuple[Totals, Totals]:
    """Of every row of `a` with all of `b`, and of every row of `b` with all of `a`."""
    if _use_ring(len(a.ids), len(b.ids), scope):
        return _ring(a, b, affine, reduction, scope, both=True, fixed_stay=False)
    if size(scope) == 1:
        logits = _masked_logits(a, b, affine)
        return _of_rows(logits, reduction), _of_rows(logits, reduction, axis=0)
    return totals(a, b, affine, reduction, scope), totals(b, a, affine, reduction, scope)


def _use_ring(here: int, there: int, scope: Scope) -> bool:
    if scope.impl == "auto":
        return here * there * size(scope) > RING_FROM
    return scope.impl == "ring"


def dot_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """(m, D), (n, D) -> (m, n) fp32, in full precision: the 10-bit products of accelerators blur a softmax of 100·x."""
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _allowed(a_ids, b_ids):
    return (a_ids[:, None] != b_ids) & (a_ids[:, None] != NOBODY) & (b_ids != NOBODY)


def _masked_logits(a: Side, b: Side, affine: Affine) -> jax.Array:
    # Scaled before masking: the gradient of scale would otherwise be 0 · EXCLUDED.
    logits = affine.scale * dot_products(a.rows, b.rows) + affine.bias
    return jnp.where(_allowed(a.ids, b.ids), logits, EXCLUDED)


def _of_rows(logits, reduction, axis=1) -> Totals:
    return Totals(reduction.of(logits, axis), jax.lax.stop_gradient(jnp.max(logits, axis=axis)))


def _join(parts: Totals, reduction) -> Totals:
    """(parts, b) -> (b,)."""
    return Totals(reduction.join(parts.total, 0), jax.lax.stop_gradient(jnp.max(parts.best, axis=0)))


def _add(one: Totals, other: Totals, reduction) -> Totals:
    return _join(jax.tree.map(lambda *x: jnp.stack(x), one, other), reduction)


def _ring(stay: Side, travel: Side, affine, reduction, scope, *, both, fixed_stay) -> tuple[Totals, Totals]:
    """(totals of the rows that stay, of the rows that travel); the first mean nothing unless `both`."""
    scale = jnp.asarray(affine.scale, jnp.float32)
    affine = as_varying((scale, jnp.asarray(affine.bias, jnp.float32)), travel.rows)
    stay = as_varying(stay, travel.rows)
    scope = scope._replace(key=None)  # what a function is compiled for must be hashable
    return _ring_totals(_Ring(reduction, scope, both, fixed_stay), stay, travel, affine)


class _Ring(NamedTuple):
    """What is known when the ring is compiled."""

    reduction: Reduction
    scope: Scope
    both: bool
    fixed_stay: bool

    def chunks(self, tree, rows: int, travelling: int):
        """`tree` of (rows, …) -> (chunks, chunk, …), padded with rows of NOBODY, so that a block is at most BLOCK."""
        chunk = min(rows, max(1, BLOCK // travelling))
        count = math.ceil(rows / chunk)

        def cut(x):
            missing = [(0, count * chunk - rows)] + [(0, 0)] * (x.ndim - 1)
            padded = jnp.pad(x, missing, constant_values=NOBODY if jnp.issubdtype(x.dtype, jnp.integer) else 0)
            return padded.reshape(count, chunk, *x.shape[1:])

        return jax.tree.map(cut, tree)


def _around(ring: _Ring, visit, travelling, staying):
    """`visit(travelling, staying) -> the same` once on every device; what travels ends where it began."""

    def step(carry, _):
        travelling, staying = visit(*carry)
        return (pass_on(travelling, ring.scope), staying), None

    return jax.lax.scan(step, (travelling, staying), length=size(ring.scope))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring_totals(ring: _Ring, stay: Side, travel: Side, affine) -> tuple[Totals, Totals]:
    return _ring_forward(ring, stay, travel, affine)[0]


def _ring_forward(ring, stay, travel, affine):
    reduction, rows = ring.reduction, len(stay.ids)
    blank = lambda ids: as_varying(  # noqa: E731
        Totals(jnp.full(ids.shape, reduction.start, jnp.float32), jnp.full(ids.shape, EXCLUDED, jnp.float32)), ids
    )
    chunks = ring.chunks(stay, rows, len(travel.ids))

    def visit(travelling, of_stay):
        def block(carry, chunk):
            side, of_travel = carry
            chunk, of_chunk = chunk
            logits = _masked_logits(chunk, side, Affine(*affine))
            if ring.both:
                of_chunk = _add(of_chunk, _of_rows(logits, reduction), reduction)
            return (side, _add(of_travel, _of_rows(logits, reduction, axis=0), reduction)), of_chunk

        return jax.lax.scan(block, travelling, (chunks, of_stay))

    (_, of_travel), of_stay = _around(ring, visit, (travel, blank(travel.ids)), blank(chunks.ids))
    of_stay = jax.tree.map(lambda x: x.reshape(-1)[:rows], of_stay)
    return (of_stay, of_travel), (stay, travel, affine, of_stay.total, of_travel.total)


def _ring_backward(ring, saved, cotangents):
    stay, travel, affine, total_stay, total_travel = saved
    (grad_stay, _), (grad_travel, _) = cotangents
    reduction, rows = ring.reduction, len(stay.ids)
    fp32_zeros = lambda x: as_varying(jnp.zeros(x.shape, jnp.float32), travel.ids)  # noqa: E731
    chunks, cut_total, cut_grad = ring.chunks((stay, total_stay, grad_stay), rows, len(travel.ids))

    def visit(travelling, staying):
        def block(carry, chunk):
            (side, total, grad, d_side), d_affine = carry
            chunk, chunk_total, chunk_grad, d_chunk = chunk
            products = dot_products(chunk.rows, side.rows)
            logits = affine[0] * products + affine[1]
            slope = grad * reduction.slope(logits, total)
            if ring.both:
                slope += chunk_grad[:, None] * reduction.slope(logits, chunk_total[:, None])
            slope = jnp.where(_allowed(chunk.ids, side.ids), slope, 0.0)
            d_affine = (d_affine[0] + jnp.sum(slope * products), d_affine[1] + jnp.sum(slope))
            d_side += dot_products(affine[0] * slope.T, chunk.rows.T)
            if not ring.fixed_stay:
                d_chunk += dot_products(affine[0] * slope, side.rows.T)
            return ((side, total, grad, d_side), d_affine), d_chunk

        travelling, (d_affine, d_stay) = travelling, staying
        (travelling, d_affine), d_stay = jax.lax.scan(
            block, (travelling, d_affine), (chunks, cut_total, cut_grad, d_stay)
        )
        return travelling, (d_affine, d_stay)

    start = (travel, total_travel, grad_travel, fp32_zeros(travel.rows))
    nothing = (jax.tree.map(fp32_zeros, affine), fp32_zeros(chunks.rows))
    (_, _, _, d_travel), (d_affine, d_stay) = _around(ring, visit, start, nothing)
    d_stay = d_stay.reshape(-1, d_stay.shape[-1])[:rows]
    return (
        Side(d_stay.astype(stay.rows.dtype), None),
        Side(d_travel.astype(travel.rows.dtype), None),
        d_affine,
    )


_ring_totals.defvjp(_ring_forward, _ring_backward)
