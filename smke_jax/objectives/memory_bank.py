"""A ring of past features with the ids of the images they came from, as explicit state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.losses.collective import Scope
from smke_jax.losses.pairs import NOBODY, Rows

UNFILLED, RANDOM = NOBODY, -2  # ids of slots that hold nothing yet, and of random initial content


SPREAD = ("features", "ids")  # rows of a bank lie spread over the devices: queries travel to them


class MemoryBank(NamedTuple):
    features: jax.Array  # (K, D) L2-normalised
    ids: jax.Array  # (K,) int32 image id, or UNFILLED / RANDOM
    head: jax.Array  # () int32 next slot to write


def empty_bank(size: int, width: int) -> MemoryBank:
    """No entry counts until it is written."""
    return MemoryBank(jnp.zeros((size, width)), jnp.full(size, UNFILLED, jnp.int32), jnp.zeros((), jnp.int32))


def random_bank(key: jax.Array, size: int, width: int) -> MemoryBank:
    """Uniform [0, 1) vectors, normalised, that count as negatives from the first step: the thesis' code (spec 15)."""
    features = jax.random.uniform(key, (size, width))
    features /= jnp.linalg.norm(features, axis=1, keepdims=True)
    return MemoryBank(features, jnp.full(size, RANDOM, jnp.int32), jnp.zeros((), jnp.int32))


def new_bank(key: jax.Array, size: int, batch: jax.ShapeDtypeStruct, *, random: bool, term: str) -> MemoryBank:
    """A bank of `size` for what comes in batches (B, D), empty or `random`; UserError where a batch does not fit."""
    if size < len(batch):
        raise UserError(f"{term}.bank_size {size} is smaller than the batch of {len(batch)}: raise it")
    width = batch.shape[-1]
    return random_bank(key, size, width) if random else empty_bank(size, width)


def negatives(bank: MemoryBank, ids: jax.Array, size: int, scope: Scope) -> tuple[Rows, jax.Array, Scope]:
    """What `info_nce` takes as its bank, for queries of the images `ids` (b,).

    A slot counts if it is filled, and not with a feature of the query's own image: without the ids a bank larger
    than the captioned set would hold every image's own target as a negative.  Where there are fewer than `size`
    slots here, the other devices of `scope` hold the rest.
    """
    return Rows(bank.features, bank.ids), ids, scope if len(bank.ids) < size else scope._replace(axis=None)


def filled(bank: MemoryBank) -> jax.Array:
    """Share of the slots here that hold something."""
    return jnp.mean((bank.ids != UNFILLED).astype(jnp.float32))


def push(bank: MemoryBank, features: jax.Array, ids: jax.Array) -> MemoryBank:
    """Writes the global batch (B, D), (B,) at the head, wrapping around; the size need not divide by B.

    Every slot looks for its new content, instead of every feature for its slot: a bank that is spread over devices
    then stays where it is.
    """
    new = (jnp.arange(len(bank.ids)) - bank.head) % len(bank.ids)  # row of the batch that belongs into each slot
    written = new < len(ids)
    row = jnp.where(written, new, 0)
    return MemoryBank(
        jnp.where(written[:, None], jnp.asarray(features)[row], bank.features),
        jnp.where(written, jnp.asarray(ids, jnp.int32)[row], bank.ids),
        (bank.head + len(ids)) % len(bank.ids),
    )
