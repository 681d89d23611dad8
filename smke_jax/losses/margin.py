"""Losses with a margin on cosine similarities: the ranking loss over all pairs and the cosine embedding loss."""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import ALONE, Scope, gather, global_rows, own_rows, size
from smke_jax.losses.pairs import SUM_RELU, Affine, Rows
from smke_jax.losses.totals import totals


def ranking_loss(
    anchors: jax.Array, others: jax.Array, *, margin: float, scope: Scope = ALONE, ids: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """max(0, margin - aᵢ·oᵢ + aᵢ·oⱼ) of anchors a and others o, mean over all i ≠ j of the global batch.

    anchors, others (b, D): L2-normalised rows of this device.
    ids (b,): ids of the images.  With them, i and j of the same image count as 0.
    -> (loss, accuracy), means over this device's anchors, float32.  An anchor counts as right if oᵢ is nearer than
    every oⱼ; a tie is wrong.
    Source: Aytar et al. 2017, "See, Hear, and Read"; spec 20.
    """
    anchors, others = anchors.astype(jnp.float32), others.astype(jnp.float32)
    slack = margin - jnp.sum(anchors * others, axis=-1, keepdims=True)  # (b, 1)
    # The logit of i and j is margin - aᵢ·oᵢ + aᵢ·oⱼ: one more channel, 1 in every oⱼ, adds the slack of aᵢ.
    anchors = jnp.concatenate([anchors, slack], axis=1)
    others = jnp.concatenate([others, jnp.ones_like(slack)], axis=1)
    ids = global_rows(len(anchors), scope) if ids is None else ids
    hinges, largest = totals(Rows(anchors, ids), Rows(others, ids), affine=Affine(1.0), reduction=SUM_RELU, scope=scope)
    pairs = len(anchors) * size(scope) - 1
    return jnp.mean(hinges) / pairs, jnp.mean((largest < margin).astype(jnp.float32))


def matching_cosine_loss(a: jax.Array, b: jax.Array) -> jax.Array:
    """1 - aᵢ·bᵢ, mean over rows.  L2-normalised (b, D), (b, D) -> ().

    Alone it lets a network collapse: it is 0, its least value, where all embeddings are the same vector.
    """
    return jnp.mean(1 - jnp.sum(a * b, axis=-1))


def mismatching_cosine_loss(a: jax.Array, b: jax.Array, *, margin: float, scope: Scope) -> jax.Array:
    """max(0, aᵢ·bⱼ - margin), mean over rows i.  `scope.key` draws one j ≠ i of the global batch for each i.

    a, b (b, D): L2-normalised rows of this device -> ().  Source: spec 19; torch.nn.CosineEmbeddingLoss with y = -1.
    """
    count = len(a)
    everywhere = count * size(scope)
    shift = own_rows(jax.random.randint(scope.key, (everywhere,), 1, everywhere), scope)
    other = gather(b, scope)[(global_rows(count, scope) + shift) % everywhere]
    return jnp.mean(jax.nn.relu(jnp.sum(a * other, axis=-1) - margin))
