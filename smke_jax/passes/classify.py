"""Images through a classifier: as they are, and mixed with each other."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from smke_jax.models.classifier import ImageClassifier
from smke_jax.passes.base import MEAN, STD, Pass, apply_with_tokens, mode, to_network

MIXUP = "mixup"  # the array of a selection: for every row, the row that it is mixed with


class Mixing(NamedTuple):
    """How images are mixed; 0 for one of the alphas leaves that way out.

    mixup_alpha, cutmix_alpha: of the Beta distributions of the share that stays
    probability:  that a batch is mixed at all
    cutmix_share: probability of CutMix where both are possible
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    probability: float = 0.9
    cutmix_share: float = 0.5


def classify_image(model: ImageClassifier, network: str, *, mixing: Mixing, mean=MEAN, std=STD) -> tuple[Pass, Pass]:
    """Two passes.

    'class/logits' (B, C) and 'class/feature' (B, D) of 'image'.
    'mixed/logits' (B, C) of each image mixed with the one that 'mixup' names, and 'mixed/label' (B, C), the shares of
    their labels: see `mix`.  All images of a batch are mixed in the same way.  With micro-batches, those of one.
    """

    def apply(params, pixels, key, train):
        return apply_with_tokens(model, params[network], pixels, **mode(key, train))

    def plain(params, arrays, key, train):
        logits, sown = apply(params, to_network(arrays["image"], mean, std), key, train)
        return {"class/logits": logits, "class/feature": sown["feature"]}

    def mixed(params, arrays, key, train):
        key_mix, key_drop = jax.random.split(key)
        images = (to_network(arrays[name], mean, std) for name in ("image", f"image@{MIXUP}"))
        pixels, share = mix(key_mix, *images, mixing)
        own, other = (jax.nn.one_hot(arrays[name], model.classes) for name in ("label", f"label@{MIXUP}"))
        logits, _ = apply(params, pixels, key_drop, train)
        return {"mixed/logits": logits, "mixed/label": share * own + (1 - share) * other}

    pairs = tuple(need for name in ("image", "label") for need in (name, f"{name}@{MIXUP}"))
    return (
        Pass(network, (network,), ("image",), ("class/logits", "class/feature"), plain),
        Pass(f"{network}/mixed", (network,), pairs, ("mixed/logits", "mixed/label"), mixed),
    )


def mix(key: jax.Array, x: jax.Array, other: jax.Array, mixing: Mixing) -> tuple[jax.Array, jax.Array]:
    """Images x, other (B, H, W, C) -> (mixed images (B, H, W, C), share of x in them ()).

    mixup: λ · x + (1 - λ) · other (Zhang et al. 2018).  CutMix: a box of `other` in x, which has the share 1 - λ of the
    area before it is cut at the border; the share of x is that of the pixels that it keeps (Yun et al. 2019).
    """
    keys = jax.random.split(key, 6)
    height, width = x.shape[1:3]
    both = mixing.mixup_alpha > 0 and mixing.cutmix_alpha > 0
    cut = jax.random.bernoulli(keys[0], mixing.cutmix_share) if both else jnp.bool_(mixing.cutmix_alpha > 0)
    # An alpha of 0 is drawn with 1 in its place; the result is not chosen.
    drawn = [
        jax.random.beta(k, a or 1.0, a or 1.0) for k, a in zip(keys[1:3], (mixing.cutmix_alpha, mixing.mixup_alpha))
    ]
    is_mixed = jax.random.bernoulli(keys[3], mixing.probability if mixing.mixup_alpha or mixing.cutmix_alpha else 0.0)
    kept = jnp.where(is_mixed, jnp.where(cut, *drawn), 1.0)

    inside = [_stretch(k, size, jnp.sqrt(1 - kept)) for k, size in zip(keys[4:], (height, width))]
    box = inside[0][:, None] & inside[1][None, :]
    blended = kept * x + (1 - kept) * other
    mixed = jnp.where(cut, jnp.where(box[:, :, None], other, x), blended)
    return mixed, jnp.where(cut, 1 - jnp.mean(box.astype(jnp.float32)), kept)


def _stretch(key: jax.Array, size: int, ratio: jax.Array) -> jax.Array:
    """A stretch of `ratio` · `size` places around a random one, cut at the ends -> bool (size,)."""
    half = (size * ratio).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (), 0, size)
    places = jnp.arange(size)
    return (places >= centre - half) & (places < centre + half)
