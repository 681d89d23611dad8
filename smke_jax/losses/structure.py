"""STRUCTURE (Gröger et al. 2025): embeddings keep the neighbourhoods that the rows of a batch had before."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import ALONE, Scope, gather, mean
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.pairs import dot_products

LEAST = 1e-30  # smaller probabilities are raised to this one before a logarithm, so that gradients stay finite


def structure_loss(
    before: jax.Array, after: jax.Array, *, levels: int, temperature: float, scope: Scope = ALONE
) -> jax.Array:
    """R = 1/levels Σₗ 1/l · JS(P_beforeˡ, P_afterˡ), l from 1 to `levels`, mean over this device's rows -> () float32.

    P (B, B) is the softmax over each row of X Xᵀ / temperature.  X are the rows of all devices, normalised to length 1
    and then less their mean.  Pˡ is the l-th power of the matrix: where a walk of l steps from row to row ends.
    JS is the Jensen-Shannon divergence of two rows, in nats: ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = ½ (p + q).
    before (b, C), after (b, D): of this device.  `before` gets no gradient.
    Every device holds its rows of P, and with more than one level all of P, whatever `scope.impl` is.
    Source: Gröger et al. 2025, "With Limited Data for Multimodal Alignment, Let the STRUCTURE Guide You".
    The code of its authors (structure_reg in src/loss/clip_loss.py) has ½ KL(m ‖ p) + ½ KL(m ‖ q) in place of JS.
    """
    start = [_neighbours(x, temperature, scope) for x in (jax.lax.stop_gradient(before), after)]
    everywhere = [gather(p, scope) for p in start] if levels > 1 else []
    loss, walked = 0.0, start
    for level in range(1, levels + 1):
        if level > 1:
            # In full: a divergence of distributions that are nearly equal is a small difference of large numbers.
            walked = [
                jnp.matmul(p, step, precision=jax.lax.Precision.HIGHEST)
                for p, step in zip(walked, everywhere, strict=True)
            ]
        loss += jnp.mean(jensen_shannon(*walked)) / level
    return loss / levels


def jensen_shannon(p: jax.Array, q: jax.Array) -> jax.Array:
    """The Jensen-Shannon divergence of distributions over the last axis, in nats.  (…, n), (…, n) -> (…)."""
    log_p, log_q, log_m = (jnp.log(jnp.maximum(x, LEAST)) for x in (p, q, (p + q) / 2))
    return jnp.sum(p * (log_p - log_m) + q * (log_q - log_m), axis=-1) / 2


def _neighbours(x, temperature, scope):
    """The rows here of P: how near the rows of all devices are to each.  (b, D) -> (b, B)."""
    x = normalise(x)
    x -= mean(jnp.mean(x, axis=0), scope)
    return jax.nn.softmax(dot_products(x, gather(x, scope)) / temperature, axis=-1)
