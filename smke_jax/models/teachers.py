"""Image teachers.  Each maps normalised images (B, S, S, 3) to a feature (B, D), float32: [CLS], a mean, or logits.

A Vision Transformer also sows 'tokens' (B, N, D), the output at every patch, and 'patches' (B, N, D), the embedded
patches without positions, 'layer_<i>' (B, 1 + N, D), the residual stream after layer i, and 'mlp_<i>' (B, 1 + N, D),
the output of the MLP of layer i.  An EfficientNet sows
'tokens', the cells of its last feature map.  A classifier has `num_classes` and sows 'logits' (B, num_classes).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.models.beit import Beit
from smke_jax.models.efficientnet import EfficientNetLite
from smke_jax.models.fields import build_from
from smke_jax.models.resnet import ResNet
from smke_jax.models.vision import ImageEncoder
from smke_jax.models.vit import Vit


class Data2Vec2(ImageEncoder):
    """A Data2Vec2 encoder as a teacher: its feature is the last block's output at [CLS]."""

    @nn.compact
    def __call__(self, images, *, deterministic: bool = True):
        """Normalised images (B, S, S, 3) -> [CLS] feature (B, D), float32."""
        x = super().__call__(images, deterministic=deterministic).astype(jnp.float32)
        self.sow("intermediates", "tokens", x[:, 1:])
        return x[:, 0]


def stand_in_head(num_classes: int, temperature: float):
    """A function [CLS] (B, D) -> logits (B, num_classes) for a network without a classifier.

    The logits are cosines with fixed random directions, divided by `temperature`.  The classes mean nothing.  With
    them a recipe that learns a classifier's logits can be tried where no classifier is at hand.
    """

    def logits(cls):
        directions = jax.random.normal(jax.random.key(0), (cls.shape[-1], num_classes))
        cosines = (cls @ directions) / (
            jnp.linalg.norm(cls, axis=-1, keepdims=True) * jnp.linalg.norm(directions, axis=0)
        )
        return cosines / temperature

    return logits


TEACHERS = {"beit": Beit, "data2vec2": Data2Vec2, "efficientnet_lite": EfficientNetLite, "resnet": ResNet, "vit": Vit}


def build_teacher(config) -> nn.Module:
    """The image encoder of `config`, which holds a `type` of TEACHERS and fields of that module."""
    if config["type"] not in TEACHERS:
        raise UserError(f"there is no image encoder {config['type']!r} among {', '.join(sorted(TEACHERS))}")
    return build_from(config, TEACHERS[config["type"]])
