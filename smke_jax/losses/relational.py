"""What one set of embeddings of a batch says of its similarities, learned by two others."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import ALONE, Scope, gather, global_rows
from smke_jax.losses.pairs import EXCLUDED, dot_products


def relational_kl(
    a: jax.Array,
    b: jax.Array,
    target: jax.Array,
    scale: jax.Array,
    target_scale: float,
    *,
    diagonal: bool = True,
    scope: Scope = ALONE,
) -> tuple[jax.Array, jax.Array]:
    """(mean over rows of KL(P ‖ Q), the same of KL(P ‖ Q')), means over this device's rows, float32.

    P, Q and Q' (B, B) are the softmaxes over each row of target_scale · T Tᵀ, scale · A Bᵀ and scale · B Aᵀ.  A, B and
    T are the rows of all devices.
    a, b (b, D), target (b, C): L2-normalised rows of this device.  `target` gets no gradient.
    scale (), target_scale: inverse temperatures.
    diagonal: without it the similarity of each row with itself is left out of all three softmaxes.
    Every device holds its rows of the three matrices, whatever `scope.impl` is.
    """
    target = jax.lax.stop_gradient(target)
    log_p = _log_softmax(target, target, target_scale, diagonal, scope)
    a_to_b, b_to_a = (_log_softmax(x, y, scale, diagonal, scope) for x, y in ((a, b), (b, a)))
    kl = lambda log_q: jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))  # noqa: E731
    return kl(a_to_b), kl(b_to_a)


def _log_softmax(x, y, scale, diagonal, scope):
    """Over the rows `y` of all devices, for each row of `x` here.  (b, D), (b, D) -> (b, B)."""
    logits = scale * dot_products(x, gather(y, scope))
    if not diagonal:
        own = global_rows(len(x), scope)[:, None] == jnp.arange(logits.shape[1])
        logits = jnp.where(own, EXCLUDED, logits)
    return jax.nn.log_softmax(logits, axis=-1)
