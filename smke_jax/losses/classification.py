"""The loss of a classifier's logits, by integer labels or by shares of classes."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """-Σ target · log softmax(logits) of every row, summed over classes, float32.  -> (b,).

    logits:    (b, C)
    labels:    (b,) integers in 0 … C - 1, or (b, C) shares of the classes.  An integer of C or more gives NaN.
    smoothing: this share of every target is spread evenly over the classes, the label's own among them
    Source: label smoothing is that of Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.  Spec 3
    sums over the classes, where the thesis' code averages over them.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    if labels.ndim == 1:
        loss = -jnp.take_along_axis(log_p, labels[:, None], axis=1, mode="fill", fill_value=jnp.nan)[:, 0]
    else:
        loss = -jnp.sum(labels * log_p, axis=1)
    return (1 - smoothing) * loss - smoothing * jnp.mean(log_p, axis=1)
