"""Similarity of images and captions token by token (FILIP, Yao et al. 2022, section 3.1; spec 13).

Tokens of images are patches, tokens of captions are words.  Both are L2-normalised, so dot products are cosines.
A mask (…, L) is 1 at words and 0 elsewhere.
"""

import jax
import jax.numpy as jnp

from smke_jax.losses.collective import ALONE, Scope, gather, rows_of_columns
from smke_jax.losses.pairs import BLOCK, dot_products

WORST = -1.0  # the least cosine, which every patch has with a caption without words


def late_interaction(
    patches: jax.Array, words: jax.Array, mask: jax.Array, *, scope: Scope = ALONE
) -> tuple[jax.Array, jax.Array]:
    """Scores of the images here with all captions, and of the captions here with all images.

    patches (b, N, D), words (b, L, D), mask (b, L): of this device -> (b, B), (b, B) float32.
    The score of an image with a caption is the mean over patches of the largest cosine with any word.  The score of a
    caption with an image is the mean over words of the largest cosine with any patch.
    Every device gets the captions of all devices and compares a few of them at a time.  The backward pass computes
    their cosines again, so that at most BLOCK of all the cosines (b, B, N, L) are in memory.
    """
    words, mask = gather(words, scope), gather(mask, scope)

    @jax.checkpoint
    def with_caption(caption):
        words, mask = caption  # (L, D), (L,)
        cosines = dot_products(patches, words)  # (b, N, L)
        of_images = jnp.mean(jnp.max(jnp.where(mask, cosines, WORST), axis=2), axis=1)
        return of_images, _mean_of_words(jnp.max(cosines, axis=1), mask)

    together = max(1, BLOCK // (patches.shape[0] * patches.shape[1] * words.shape[1]))
    of_images, of_captions = jax.lax.map(with_caption, (words, mask.astype(bool)), batch_size=together)  # (B, b) each
    return of_images.T, rows_of_columns(of_captions, scope)


def best_patches(words: jax.Array, patches: jax.Array) -> jax.Array:
    """For every word the patch of its image with the largest cosine.  (b, L, D), (b, N, D) -> positions (b, L)."""
    return jnp.argmax(dot_products(words, patches), axis=2)


def best_pair(words: jax.Array, patches: jax.Array, mask: jax.Array) -> jax.Array:
    """The largest cosine of any word with any patch of its image.  (b, L, D), (b, N, D), mask (b, L) -> (b,)."""
    return jnp.max(jnp.where(mask[:, :, None] > 0, dot_products(words, patches), WORST), axis=(1, 2))


def _mean_of_words(values, mask):
    """Mean over the words of one caption, 0 without words.  (b, L), mask (L,) -> (b,)."""
    return jnp.sum(jnp.where(mask, values, 0.0), axis=1) / jnp.maximum(jnp.sum(mask), 1)
