"""Losses between a student's prediction and a teacher's feature or logits of the same example."""

import jax
import jax.numpy as jnp
import optax

from smke_jax.losses.collective import ALONE, Scope, size, total


def mean_squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over examples, tokens if any, and channels, float32.  (b, …), (b, …) -> ().  Source: spec 1, 8."""
    return jnp.mean(jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)))


def mean_squared_error_of_tokens(
    prediction: jax.Array, target: jax.Array, mask: jax.Array, *, scope: Scope = ALONE
) -> jax.Array:
    """Mean over channels and over the tokens of all devices, float32; padding does not count.

    (b, L, D), (b, L, D), mask (b, L), 1 = token -> (): this device's share, of which the mean over devices is the loss.
    Source: spec 2, disagreement (f).
    """
    kept = mask.astype(jnp.float32)
    squared = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)).mean(axis=2)
    # Devices hold different numbers of tokens: the sum here is divided by the tokens of an average device.
    count = jnp.maximum(total(kept.sum(), scope), 1) / size(scope)
    return jnp.sum(squared * kept) / count


def kl_divergence(logits: jax.Array, target: jax.Array) -> jax.Array:
    """KL(softmax(target) || softmax(logits)), mean over examples, float32.  (b, C), (b, C) -> ().  Source: spec 5."""
    log_q, log_p = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (logits, target))
    return jnp.mean(optax.losses.kl_divergence_with_log_targets(log_q, log_p))
