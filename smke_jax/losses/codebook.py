"""Codes on the unit sphere that follow the vectors they stand for (spec 16): k-means, moving averages, restarts.

Everywhere x (B, S) are unit vectors, codes (J, S) unit vectors, and nearest (B,) int the code of each x.
"""

import jax
import jax.numpy as jnp

from smke_jax.losses.contrastive import normalise
from smke_jax.losses.pairs import dot_products


def counts(nearest: jax.Array, size: int) -> jax.Array:
    """How many of the rows each of `size` codes has.  (B,) -> (J,) fp32."""
    return jnp.sum(nearest[:, None] == jnp.arange(size), axis=0, dtype=jnp.float32)


def k_means(x: jax.Array, size: int, *, iterations: int = 10) -> jax.Array:
    """`size` codes by spherical k-means from the first rows of `x`.

    With no more rows than codes every row is a code already, and nothing moves; then rows are codes several times.
    """
    codes = x[jnp.arange(size) % len(x)]
    return jax.lax.fori_loop(0, iterations, lambda _, codes: follow(codes, x, nearest_code(x, codes), decay=0.0), codes)


def nearest_code(x: jax.Array, codes: jax.Array) -> jax.Array:
    """Position of the code with the largest cosine, the first of equals.  -> (B,) int32."""
    return jnp.argmax(dot_products(x, codes), axis=-1).astype(jnp.int32)


def follow(codes: jax.Array, x: jax.Array, nearest: jax.Array, *, decay: float) -> jax.Array:
    """decay · code + (1 - decay) · (direction of the mean of its rows), normalised; codes without rows stay."""
    mine = nearest == jnp.arange(len(codes))[:, None]  # (J, B)
    means = normalise(dot_products(mine.astype(jnp.float32), x.T))
    moved = normalise(decay * codes + (1 - decay) * means)
    return jnp.where(jnp.any(mine, axis=1, keepdims=True), moved, codes)


def restart(codes: jax.Array, dead: jax.Array, x: jax.Array, nearest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes that are `dead` (J,) become the rows that their own codes describe worst: (codes, which did (J,)).

    Of more dead codes than rows, the first.
    """
    cosines = jnp.sum(x * codes[nearest], axis=-1)
    worst = jnp.argsort(cosines)
    rank = jnp.cumsum(dead) - 1  # of each dead code among them
    taken = dead & (rank < len(x))
    return jnp.where(taken[:, None], x[worst[jnp.where(taken, rank, 0)]], codes), taken
