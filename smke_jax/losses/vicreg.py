"""VICReg (Bardes, Ponce, LeCun 2022): invariance, variance, covariance of two views' embeddings."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import gather


def vicreg(a: jax.Array, b: jax.Array, *, axis: str | None = None) -> dict[str, jax.Array]:
    """The three parts, un-weighted, over the global batch.  (b, D), (b, D) -> {'invariance', 'variance', 'covariance'}.

    variance: mean of max(0, 1 - std) per channel; covariance: squared off-diagonal entries summed, over D; both
    averaged over the two views (eq. 1-5).
    """
    a, b = gather(a.astype(jnp.float32), axis), gather(b.astype(jnp.float32), axis)
    return {
        "invariance": jnp.mean(jnp.square(a - b)),
        "variance": (_variance(a) + _variance(b)) / 2,
        "covariance": (_covariance(a) + _covariance(b)) / 2,
    }


def _variance(x):
    return jnp.mean(jax.nn.relu(1 - jnp.sqrt(jnp.var(x, axis=0, ddof=1) + 1e-4)))


def _covariance(x):
    centred = x - jnp.mean(x, axis=0)
    covariance = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST) / (len(x) - 1)
    off_diagonal = covariance * (1 - jnp.eye(x.shape[1]))
    return jnp.sum(jnp.square(off_diagonal)) / x.shape[1]
