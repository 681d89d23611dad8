"""Losses between a student's prediction and a teacher's feature or logits of the same example."""

import jax
import jax.numpy as jnp
import optax


def mean_squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over examples and channels, float32.  (b, D), (b, D) -> ().  Source: spec 8."""
    return jnp.mean(jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)))


def kl_divergence(logits: jax.Array, target: jax.Array) -> jax.Array:
    """KL(softmax(target) || softmax(logits)), mean over examples, float32.  (b, C), (b, C) -> ().  Source: spec 5."""
    log_q, log_p = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (logits, target))
    return jnp.mean(optax.losses.kl_divergence_with_log_targets(log_q, log_p))
