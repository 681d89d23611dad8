"""What embeddings of a batch say of its similarities, learned by two others."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import ALONE, Scope, gather, global_rows
from smke_jax.losses.pairs import EXCLUDED, dot_products


def relational_kl(
    a: jax.Array,
    b: jax.Array,
    targets: tuple[jax.Array, jax.Array],
    scale: jax.Array,
    target_scale: float,
    *,
    diagonal: bool = True,
    scope: Scope = ALONE,
) -> tuple[jax.Array, jax.Array]:
    """(mean over rows of KL(P ‖ Q), the same of KL(P' ‖ Q')), means over this device's rows, float32.

    P, P', Q and Q' (B, B) are the softmaxes over each row of target_scale · T Uᵀ, target_scale · U Tᵀ, scale · A Bᵀ and
    scale · B Aᵀ.  A, B, T and U are the rows of all devices.
    a, b (b, D), targets (T, U), both (b, C): L2-normalised rows of this device.  Targets get no gradient.
    scale (), target_scale: inverse temperatures.
    diagonal: without it the similarity of each row with itself is left out of all softmaxes.
    Every device holds its rows of the matrices, whatever `scope.impl` is.
    """
    first, second = jax.lax.stop_gradient(targets)

    def kl(x, y, taught_x, taught_y):
        log_p = _log_softmax(taught_x, taught_y, target_scale, diagonal, scope)
        log_q = _log_softmax(x, y, scale, diagonal, scope)
        return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))

    return kl(a, b, first, second), kl(b, a, second, first)


def _log_softmax(x, y, scale, diagonal, scope):
    """Over the rows `y` of all devices, for each row of `x` here.  (b, D), (b, D) -> (b, B)."""
    logits = scale * dot_products(x, gather(y, scope))
    if not diagonal:
        own = global_rows(len(x), scope)[:, None] == jnp.arange(logits.shape[1])
        logits = jnp.where(own, EXCLUDED, logits)
    return jax.nn.log_softmax(logits, axis=-1)
