"""Which words of a caption are hidden, and what stands in their places (BERT, Devlin et al. 2019; spec B.4)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

UNITS = ("token", "word")
ROUNDING = 1e-4  # 0.6 · 5 is not above 3
NOTHING = -1  # the label of a place where nothing is to be found


def most_masked(length: int, ratio: float, unit: str) -> int:
    """The most tokens that `mask_words` masks in a caption of `length` tokens, [CLS] and [SEP] among them."""
    # Of words the longest may be chosen: all pieces of a caption can belong to them.
    return length - 2 if unit == "word" else max(1, math.ceil(ratio * (length - 2) - ROUNDING))


def mask_words(
    key: jax.Array,
    ids: jax.Array,
    words: jax.Array,
    *,
    ratio: float,
    unit: str,
    mask_token: int,
    strangers: np.ndarray,
    random: float = 0.0,
    kept: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """One caption with some of its words hidden.  ids, words (L,) -> (ids (L,), where (L,) bool).

    ceil(ratio · n) of the n tokens are chosen, or of the n words with all of their pieces, by `unit`; special tokens,
    at which `words` is -1, never.  A chosen token becomes `mask_token`, with the probability `random` any of the
    `strangers`, and with the probability `kept` it stays as it is.  Its label is the id that stood there.
    words:     the word that each token belongs to, -1 at special tokens, as 'text_words' of a task
    strangers: ids (K,) of the vocabulary, without the special ones: [PAD] or [SEP] in place of a word would be no word
    Source: spec B.4, whose authors masked words before tokenising them.  BERT and ALBEF choose every token by itself
    with the probability 0.15, so that the number of masked tokens varies.
    """
    choice, change, other = jax.random.split(key, 3)
    length = len(ids)
    units = jnp.where(words >= 0, jnp.arange(length), NOTHING) if unit == "token" else words
    is_there = jnp.zeros(length, bool).at[units].max(units >= 0, mode="drop") if unit == "word" else units >= 0
    number = jnp.sum(is_there)
    drawn = jnp.where(is_there, jax.random.uniform(choice, (length,)), 2.0)
    place = jnp.argsort(jnp.argsort(drawn))  # of each unit in a random order, those that are not there last
    chosen_units = place < jnp.ceil(ratio * number - ROUNDING)
    chosen = (units >= 0) & chosen_units[units]
    kind = jax.random.uniform(change, (length,))
    stranger = jnp.asarray(strangers, ids.dtype)[jax.random.randint(other, (length,), 0, len(strangers))]
    hidden = jnp.where(kind < random, stranger, jnp.where(kind < random + kept, ids, mask_token))
    return jnp.where(chosen, hidden, ids).astype(ids.dtype), chosen


def places_of(chosen: jax.Array, most: int) -> jax.Array:
    """The numbers of the chosen places of each row, in order, then others.  (B, L) bool -> (B, most) int32."""
    return jnp.argsort(~chosen, axis=1, stable=True)[:, :most].astype(jnp.int32)
