"""Exact nearest rows of a large table that is spread over the devices, block by block."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import ALONE, Scope, as_varying, gather, global_rows, take_rows, to_their_devices
from smke_jax.losses.pairs import BLOCK, EXCLUDED, NOBODY, dot_products


def nearest_foreign(
    queries: jax.Array, ids: jax.Array, table: jax.Array, owners: jax.Array, k: int, *, block: int = 0,
    scope: Scope = ALONE,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Of each query the `k` rows of the table with the largest dot products that have another id, the nearest first.

    queries (b, D), ids (b,): of this device.
    table (n, D), owners (n,): this device's part of a table whose rows are spread over the devices; rows with the owner
      NOBODY are never found.
    block: most rows of the table that are compared at once; 0 takes as many as make BLOCK products, and at most as many
      as have BLOCK values in float32
    -> (rows (b, k) float32 of the table's features (b, k, D), their numbers in the whole table (b, k) int32).
    Of equal products the row with the smaller number comes first, whatever the devices and blocks.  Every device holds
    the queries of all devices and k candidates of each.  A query with fewer than `k` rows of another id gets rows of
    its own: the caller has to see to it that there are enough.
    """
    everyone, their_ids = gather(queries.astype(jnp.float32), scope), gather(ids, scope)
    scores, rows = _of_this_part(everyone, their_ids, table, owners, k, block)
    first = global_rows(len(table), scope)[0]
    # (devices, B, k) -> of the queries here (b, devices · k), the devices in order
    scores, rows = (to_their_devices(x, scope).swapaxes(0, 1).reshape(len(queries), -1) for x in (scores, rows + first))
    places = jax.lax.top_k(scores, k)[1]
    numbers = jnp.take_along_axis(rows, places, axis=1)
    found = take_rows(table, numbers.reshape(-1), scope).reshape(len(queries), k, -1)
    return found.astype(jnp.float32), numbers


def _of_this_part(queries, ids, table, owners, k, block):
    """The best rows of the table's part here: (scores (B, k), their numbers in the part (B, k))."""
    count = len(table)
    block = min(count, block or max(k, BLOCK // max(queries.shape)))

    def look(best, first):
        # The last block begins early, so that all are of one size: what was seen before is left out.
        start = jnp.minimum(first, count - block)
        part, whose = (jax.lax.dynamic_slice_in_dim(x, start, block) for x in (table, owners))
        numbers = start + jnp.arange(block, dtype=jnp.int32)
        there = (whose != ids[:, None]) & (whose != NOBODY) & (numbers >= first)
        fresh = jnp.where(there, dot_products(queries, part.astype(jnp.float32)), EXCLUDED)
        # The best so far come first: their numbers are smaller, which decides between equal products.
        scores = jnp.concatenate([best[0], fresh], axis=1)
        numbers = jnp.concatenate([best[1], jnp.broadcast_to(numbers, fresh.shape)], axis=1)
        scores, places = jax.lax.top_k(scores, k)
        return (scores, jnp.take_along_axis(numbers, places, axis=1)), None

    empty = (jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32))
    empty = as_varying(empty, table)
    blocks = -(-count // block)
    return jax.lax.scan(look, empty, jnp.arange(blocks, dtype=jnp.int32) * block)[0]
