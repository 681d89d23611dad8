"""An image encoder with a linear classifier on the mean of its patches (spec 3)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from smke_jax.models.fields import build_from
from smke_jax.models.layers import Dense, LayerNorm
from smke_jax.models.towers import IMAGE_TOWERS

NORM_EPS = 1e-6


class ImageClassifier(nn.Module):
    """Mean of the patches, LayerNorm, linear layer.  Normalised images (B, S, S, 3) -> logits (B, classes), float32.

    encoder: an image tower; its [CLS] is left out.  The patches of a convolutional one are the cells of its last map
    It sows 'feature' (B, D), float32: the mean of the patches, before the LayerNorm.
    """

    encoder: nn.Module
    classes: int

    @nn.compact
    def __call__(self, images, *, deterministic: bool = True):
        tokens = self.encoder(images, deterministic=deterministic)
        feature = tokens[:, 1:].astype(jnp.float32).mean(axis=1)
        self.sow("intermediates", "feature", feature)
        # The thesis draws from a normal distribution that is cut at ±2, which is a hundred standard deviations.
        head = Dense(self.classes, kernel_init=nn.initializers.normal(0.02), name="head")
        return head(LayerNorm(NORM_EPS, jnp.float32, name="norm")(feature))


def build_classifier(description: Mapping[str, Any]) -> ImageClassifier:
    """The model of {'image': {'type', fields of the tower}, 'class_names': […], 'dtype', 'remat'}."""
    settings = {name: description[name] for name in ("dtype", "residual_dtype", "remat") if name in description}
    tower = {**description["image"], **settings}
    return ImageClassifier(build_from(tower, IMAGE_TOWERS[tower["type"]]), len(description["class_names"]))
