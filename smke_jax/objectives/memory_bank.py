"""A ring of teacher features with the ids of the images they came from, as explicit state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

UNFILLED, RANDOM = -1, -2  # ids of slots that hold nothing yet, and of random initial content


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


def negatives(bank: MemoryBank, ids: jax.Array) -> jax.Array:
    """Which slots are negatives of which example -> (b, K) bool: filled, and not with a feature of the same image.

    Without the ids a bank larger than the captioned set holds every image's own target as a negative.
    """
    return (bank.ids != UNFILLED) & (bank.ids != ids[:, None])


def push(bank: MemoryBank, features: jax.Array, ids: jax.Array) -> MemoryBank:
    """Writes the global batch (B, D), (B,) at the head, wrapping around; the size need not divide by B."""
    slots = (bank.head + jnp.arange(len(ids))) % len(bank.ids)
    return MemoryBank(
        bank.features.at[slots].set(features),
        bank.ids.at[slots].set(ids.astype(jnp.int32)),
        (bank.head + len(ids)) % len(bank.ids),
    )
