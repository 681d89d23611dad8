"""A codebook of unit vectors that follows the vectors it stands for (spec 16): k-means, moving averages, restarts.

In every function x (B, S) and codes (J, S) have rows of length 1, and nearest (B,) int holds the position of the code
of each row of x.
"""

import jax
import jax.numpy as jnp

from smke_jax.losses.contrastive import normalise
from smke_jax.losses.pairs import dot_products


def counts(nearest: jax.Array, size: int) -> jax.Array:
    """The number of rows of each of `size` codes.  nearest (B,) -> (J,) float32."""
    return jnp.sum(nearest[:, None] == jnp.arange(size), axis=0, dtype=jnp.float32)


def k_means(x: jax.Array, size: int, *, iterations: int = 10) -> jax.Array:
    """`size` codes by spherical k-means, which starts from the first `size` rows of x -> (size, S).

    With fewer rows than codes the rows are repeated: every row is a code, and some rows are several codes.
    """
    codes = x[jnp.arange(size) % len(x)]
    return jax.lax.fori_loop(0, iterations, lambda _, codes: follow(codes, x, nearest_code(x, codes), decay=0.0), codes)


def nearest_code(x: jax.Array, codes: jax.Array) -> jax.Array:
    """Position of the code with the largest cosine, of equal ones the first -> (B,) int32."""
    return jnp.argmax(dot_products(x, codes), axis=-1).astype(jnp.int32)


def follow(codes: jax.Array, x: jax.Array, nearest: jax.Array, *, decay: float) -> jax.Array:
    """Codes moved towards their rows: decay · code + (1 - decay) · (normalised mean of its rows), normalised.

    A code without rows stays -> (J, S).
    """
    mine = nearest == jnp.arange(len(codes))[:, None]  # (J, B)
    means = normalise(dot_products(mine.astype(jnp.float32), x.T))
    moved = normalise(decay * codes + (1 - decay) * means)
    return jnp.where(jnp.any(mine, axis=1, keepdims=True), moved, codes)


def restart(codes: jax.Array, dead: jax.Array, x: jax.Array, nearest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Every code with `dead` (J,) true becomes one of the rows of x with the least cosine to their code.

    -> (codes (J, S), which codes were replaced (J,) bool).  With more dead codes than rows the first are replaced.
    """
    cosines = jnp.sum(x * codes[nearest], axis=-1)
    worst = jnp.argsort(cosines)
    rank = jnp.cumsum(dead) - 1  # of each dead code among the dead codes
    taken = dead & (rank < len(x))
    return jnp.where(taken[:, None], x[worst[jnp.where(taken, rank, 0)]], codes), taken
