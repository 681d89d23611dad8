"""Losses of what is hidden: means over the masked places of the global batch, however many each row has."""

import jax
import jax.numpy as jnp
import optax

from smke_jax.losses.collective import ALONE, Scope, size, total


def mean_at(values: jax.Array, where: jax.Array, scope: Scope = ALONE) -> jax.Array:
    """Mean of `values` where `where`, over all devices; 0 where nothing is.  (b, …), (b, …) bool -> ().

    It is this device's share times the number of devices, so that the mean over devices is that over all places.
    """
    where = where.astype(jnp.float32)
    return jnp.sum(values * where) * size(scope) / jnp.maximum(total(jnp.sum(where), scope), 1)


def masked_words(
    logits: jax.Array,
    labels: jax.Array,
    *,
    taught: jax.Array | None = None,
    share: jax.Array | float = 0.0,
    scope: Scope = ALONE,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of hidden words -> (loss, accuracy), means over the labels that are not negative.

    logits (b, M, V), labels (b, M).  taught (b, M, V): logits of a teacher, without gradient; the loss is then
    (1 - share) · CE of the labels + share · CE of the teacher's softmax (ALBEF, Li et al. 2021, eq. 7).
    """
    there, right = labels >= 0, jnp.maximum(labels, 0)
    logits = logits.astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, right)
    if taught is not None:
        target = jax.nn.softmax(jax.lax.stop_gradient(taught).astype(jnp.float32))
        losses = (1 - share) * losses + share * optax.softmax_cross_entropy(logits, target)
    found = (jnp.argmax(logits, axis=-1) == right).astype(jnp.float32)
    return mean_at(losses, there, scope), mean_at(found, there, scope)


def spread_at(x: jax.Array, where: jax.Array, scope: Scope = ALONE) -> jax.Array:
    """How different the tokens at `where` are, over all devices: 0 where all are the same, 1 in all directions alike.

    x (b, L, D), where (b, L) bool -> ().  The deviation of each channel of the L2-normalised tokens, its mean over
    channels, times √D: the measure that the step has of embeddings (Chen, He 2021, figure 2).
    """
    x = x.astype(jnp.float32)
    x /= jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    weight = where.astype(jnp.float32)[..., None]
    count = jnp.maximum(total(jnp.sum(weight), scope), 1)
    mean = total(jnp.sum(x * weight, axis=(0, 1)), scope) / count
    variance = total(jnp.sum(jnp.square(x - mean) * weight, axis=(0, 1)), scope) / count
    return jnp.sqrt(variance).mean() * jnp.sqrt(1.0 * x.shape[-1])
