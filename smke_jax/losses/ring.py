"""Totals over the rows of all devices, computed on a ring of devices: exact, with the memory of one block of logits.

Every device holds two sets of rows.  Its residents stay.  Its visitors travel from device to device.

    totals of residents and of visitors = reduction.empty
    repeat for every device of the ring:
        for each chunk of the residents:                             # a block has at most BLOCK logits
            logits = scale · chunk @ visitors.T + bias
            totals of visitors = combine(totals of visitors, reduce(logits over the chunk))
            totals of chunk    = combine(totals of chunk, reduce(logits over the visitors))   # symmetric losses only
        the visitors and their totals go to the next device

After that many steps the visitors are home again, and have met all residents.  The backward pass makes the same round
and computes the logits again:

            slope = d loss / d logits = d loss / d total · reduction.derivative(logits, total)
            gradient by the visitors += scale · slope.T @ chunk      # travels with the visitors
            gradient by the chunk    += scale · slope @ visitors     # stays

A symmetric loss adds both directions to `slope`, so one round serves both.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import Scope, as_varying, pass_on, rounded, size
from smke_jax.losses.pairs import (
    BLOCK,
    EXCLUDED,
    NOBODY,
    Affine,
    Reduction,
    Rows,
    Totals,
    are_negatives,
    combined,
    dot_products,
    masked_logits,
    totals_of,
)


def ring_totals(
    residents: Rows,
    visitors: Rows,
    *,
    affine: Affine,
    reduction: Reduction,
    scope: Scope,
    symmetric: bool,
    fixed_residents: bool = False,
) -> tuple[Totals, Totals]:
    """(Totals of the residents here over all visitors, totals of the visitors here over all residents), (b,) each.

    Only a `symmetric` ring computes the totals of residents; otherwise these hold nothing of use.
    `fixed_residents` promises that the gradient by the residents is not needed; it is then 0.
    """
    # The arrays of a loop, and those of a gradient rule, must all be marked as varying over the same mesh axes.
    affine = Affine(*(jnp.asarray(x, jnp.float32) for x in affine))
    residents, affine = as_varying((residents, affine), visitors.features)
    visitors = visitors._replace(features=rounded(visitors.features, scope))
    ring = _Ring(reduction, scope._replace(key=None), symmetric, fixed_residents)  # static, so it must be hashable
    return _ring_totals(ring, residents, visitors, affine)


class _Ring(NamedTuple):
    """What is known when the ring is compiled."""

    reduction: Reduction
    scope: Scope
    symmetric: bool
    fixed_residents: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring_totals(ring: _Ring, residents: Rows, visitors: Rows, affine: Affine) -> tuple[Totals, Totals]:
    return _forward(ring, residents, visitors, affine)[0]


def _forward(ring: _Ring, residents: Rows, visitors: Rows, affine: Affine):
    chunks = _in_chunks(residents, len(visitors.ids))

    def visit(travelling, of_residents):
        def block(travelling, chunk_and_totals):
            visitors, of_visitors = travelling
            chunk, of_chunk = chunk_and_totals
            logits = masked_logits(chunk, visitors, affine)  # (rows of the chunk, visitors)
            if ring.symmetric:
                of_chunk = _add(of_chunk, totals_of(logits, ring.reduction, axis=1), ring.reduction)
            of_visitors = _add(of_visitors, totals_of(logits, ring.reduction, axis=0), ring.reduction)
            return (visitors, of_visitors), of_chunk

        return jax.lax.scan(block, travelling, (chunks, of_residents))

    travelling = (visitors, _no_totals(visitors.ids, ring.reduction))
    (_, of_visitors), of_residents = _round(ring, visit, travelling, _no_totals(chunks.ids, ring.reduction))
    of_residents = _out_of_chunks(of_residents, len(residents.ids))
    saved = residents, visitors, affine, of_residents.total, of_visitors.total
    return (of_residents, of_visitors), saved


def _backward(ring: _Ring, saved, cotangents):
    residents, visitors, affine, resident_totals, visitor_totals = saved
    (resident_cotangents, _), (visitor_cotangents, _) = cotangents  # the largest logits have no gradient
    chunks = _in_chunks((residents, resident_totals, resident_cotangents), len(visitors.ids))

    def visit(travelling, staying):
        d_affine, d_residents = staying

        def block(carry, chunk_and_gradient):
            (visitors, total, cotangent, d_visitors), d_affine = carry
            (chunk, chunk_total, chunk_cotangent), d_chunk = chunk_and_gradient
            products = dot_products(chunk.features, visitors.features)  # (rows of the chunk, visitors)
            logits = affine.scale * products + affine.bias
            slope = cotangent * ring.reduction.derivative(logits, total)
            if ring.symmetric:
                slope += chunk_cotangent[:, None] * ring.reduction.derivative(logits, chunk_total[:, None])
            slope = jnp.where(are_negatives(chunk.ids, visitors.ids), slope, 0.0)
            d_affine = Affine(d_affine.scale + jnp.sum(slope * products), d_affine.bias + jnp.sum(slope))
            d_visitors += dot_products(affine.scale * slope.T, chunk.features.T)
            if not ring.fixed_residents:
                d_chunk += dot_products(affine.scale * slope, visitors.features.T)
            return ((visitors, total, cotangent, d_visitors), d_affine), d_chunk

        (travelling, d_affine), d_residents = jax.lax.scan(block, (travelling, d_affine), (chunks, d_residents))
        return travelling, (d_affine, d_residents)

    def zeros(x):
        return as_varying(jnp.zeros(x.shape, jnp.float32), visitors.ids)

    travelling = (visitors, visitor_totals, visitor_cotangents, zeros(visitors.features))
    staying = (jax.tree.map(zeros, affine), zeros(chunks[0].features))
    (_, _, _, d_visitors), (d_affine, d_residents) = _round(ring, visit, travelling, staying)
    d_residents = _out_of_chunks(d_residents, len(residents.ids))
    return (
        Rows(d_residents.astype(residents.features.dtype), None),
        Rows(d_visitors.astype(visitors.features.dtype), None),
        d_affine,
    )


_ring_totals.defvjp(_forward, _backward)


def _round(ring: _Ring, visit, travelling, staying):
    """Calls `visit(travelling, staying)` once per device of the ring -> the last (travelling, staying).

    `visit` returns both with what it has added.  After each call `travelling` goes to the next device, so that in the
    end it is home again.
    """

    def step(carry, _):
        travelling, staying = visit(*carry)
        return (pass_on(travelling, ring.scope), staying), None

    return jax.lax.scan(step, (travelling, staying), length=size(ring.scope))[0]


def _in_chunks(tree, visitors: int):
    """Every array of residents (rows, …) -> (chunks, rows of a chunk, …).

    A chunk has at most BLOCK logits with that many `visitors`.  The last chunk is padded with rows of the id NOBODY.
    """
    rows = len(jax.tree.leaves(tree)[0])
    chunk = min(rows, max(1, BLOCK // visitors))
    count = math.ceil(rows / chunk)

    def cut(x):
        missing = [(0, count * chunk - rows)] + [(0, 0)] * (x.ndim - 1)
        padded = jnp.pad(x, missing, constant_values=NOBODY if jnp.issubdtype(x.dtype, jnp.integer) else 0)
        return padded.reshape(count, chunk, *x.shape[1:])

    return jax.tree.map(cut, tree)


def _out_of_chunks(tree, rows: int):
    """(chunks, rows of a chunk, …) -> (rows, …), without the padding."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:rows], tree)


def _no_totals(ids: jax.Array, reduction: Reduction) -> Totals:
    """Totals of no logits, in the shape of `ids`."""
    blank = Totals(jnp.full(ids.shape, reduction.empty, jnp.float32), jnp.full(ids.shape, EXCLUDED, jnp.float32))
    return as_varying(blank, ids)


def _add(one: Totals, other: Totals, reduction: Reduction) -> Totals:
    return combined(jax.tree.map(lambda *x: jnp.stack(x), one, other), reduction)
