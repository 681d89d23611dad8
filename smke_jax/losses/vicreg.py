"""VICReg (Bardes, Ponce, LeCun 2022): invariance, variance and covariance of the embeddings of two views."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import ALONE, Scope, mean, size, total
from smke_jax.losses.pairs import dot_products


def vicreg(a: jax.Array, b: jax.Array, *, scope: Scope = ALONE) -> dict[str, jax.Array]:
    """The three parts over the global batch, without their weights.  a, b (b, D): the rows of this device.

    invariance: mean of (a - b)² over rows and channels
    variance:   mean over channels of max(0, 1 - standard deviation); the mean of both views
    covariance: sum of the squared off-diagonal entries of the covariance matrix, divided by D; the sum of both views
    These are the parts that the authors' code weighs 25 : 25 : 1 (facebookresearch/vicreg, main_vicreg.py).  Their
    equation 6 sums over the channels in the invariance and over both views in the variance.
    Devices exchange covariance matrices (D, D), whose size does not depend on the batch.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    covariances = [_covariance(x, scope) for x in (a, b)]
    return {
        "invariance": mean(jnp.mean(jnp.square(a - b)), scope),
        "variance": sum(map(_variance_part, covariances)) / 2,
        "covariance": sum(map(_covariance_part, covariances)),
    }


def _covariance(x, scope):
    """Unbiased covariance over the rows of all devices -> (D, D)."""
    centred = x - mean(jnp.mean(x, axis=0), scope)
    return total(dot_products(centred.T, centred.T), scope) / (len(x) * size(scope) - 1)


def _variance_part(covariance):
    return jnp.mean(jax.nn.relu(1 - jnp.sqrt(jnp.diagonal(covariance) + 1e-4)))


def _covariance_part(covariance):
    off_diagonal = covariance * (1 - jnp.eye(len(covariance)))
    return jnp.sum(jnp.square(off_diagonal)) / len(covariance)
