"""VICReg (Bardes, Ponce, LeCun 2022): invariance, variance, covariance of two views' embeddings."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import ALONE, Scope, mean, size, total


def vicreg(a: jax.Array, b: jax.Array, *, scope: Scope = ALONE) -> dict[str, jax.Array]:
    """The three parts, un-weighted, over the global batch.  (b, D), (b, D) -> {'invariance', 'variance', 'covariance'}.

    variance: mean of max(0, 1 - std) per channel; covariance: squared off-diagonal entries summed, over D; both
    averaged over the two views (eq. 1-5).  Devices exchange the (D, D) covariances, whatever the batch.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    covariances = [_covariance(x, scope) for x in (a, b)]
    return {
        "invariance": mean(jnp.mean(jnp.square(a - b)), scope),
        "variance": sum(map(_variance_part, covariances)) / 2,
        "covariance": sum(map(_covariance_part, covariances)) / 2,
    }


def _covariance(x, scope):
    """Unbiased covariance over the rows of all devices -> (D, D)."""
    centred = x - mean(jnp.mean(x, axis=0), scope)
    products = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST)
    return total(products, scope) / (len(x) * size(scope) - 1)


def _variance_part(covariance):
    return jnp.mean(jax.nn.relu(1 - jnp.sqrt(jnp.diagonal(covariance) + 1e-4)))


def _covariance_part(covariance):
    off_diagonal = covariance * (1 - jnp.eye(len(covariance)))
    return jnp.sum(jnp.square(off_diagonal)) / len(covariance)
