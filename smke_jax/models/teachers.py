"""Image teachers.  Each maps normalised images (B, S, S, 3) to a feature (B, D), float32: [CLS], a mean, or logits.

A Vision Transformer also sows 'tokens' (B, N, D), the output at every patch, and 'patches' (B, N, D), the embedded
patches without positions, and 'layer_<i>' (B, 1 + N, D), the residual stream after layer i.  An EfficientNet sows
'tokens', the cells of its last feature map.  A classifier has `num_classes` and sows 'logits' (B, num_classes).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.errors import UserError
from smke_jax.models.efficientnet import EfficientNetLite
from smke_jax.models.fields import build_from
from smke_jax.models.layers import Block, LayerNorm, kernel_init, prepend
from smke_jax.models.resnet import ResNet
from smke_jax.models.vision import ImageEncoder, PatchEmbed, patchify
from smke_jax.models.vit import Vit


def relative_position_index(grid: int) -> np.ndarray:
    """The row of BEiT's bias table for each pair of tokens (query, key) -> (1+N, 1+N) int32, N = grid² (spec 26.1).

    Of two patches it is (dy + grid-1)·(2·grid-1) + (dx + grid-1), where (dy, dx) = position of query - position of key.
    The last three rows of the table are for query [CLS] with a patch, a patch with key [CLS], and [CLS] with itself.
    """
    y, x = np.divmod(np.arange(grid * grid), grid)
    span = 2 * grid - 1
    index = np.full((1 + grid * grid, 1 + grid * grid), span * span + 2, np.int32)
    index[1:, 1:] = (y[:, None] - y + grid - 1) * span + (x[:, None] - x + grid - 1)
    index[0, 1:] = span * span
    index[1:, 0] = span * span + 1
    return index


class RelativePositionBias(nn.Module):
    """BEiT's learned bias of attention logits, N = grid² -> (1, H, 1+N, 1+N)."""

    grid: int
    num_heads: int
    initial: nn.initializers.Initializer = kernel_init(0.02)

    @nn.compact
    def __call__(self):
        rows = (2 * self.grid - 1) ** 2 + 3
        table = self.param("table", self.initial, (rows, self.num_heads))
        return table[relative_position_index(self.grid)].transpose(2, 0, 1)[None]


class Beit(nn.Module):
    """BEiT and BEiT v2 (spec 0.2, 26.1): pre-norm, LayerScale, biases of q and v, relative position bias.

    With `shared_bias` all blocks share one bias table (pretraining checkpoints); without, each block has its own
    (fine-tuned checkpoints, timm, Hugging Face).
    Without `final_norm` the feature is the last block's output.  The memory bank run of the thesis uses it so (spec
    15), and so do networks fine-tuned with mean pooling, whose last LayerNorm belongs to the mean.
    `num_classes` above 0 adds that classifier: a LayerNorm and a linear layer on the mean of the patches.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    norm_eps: float = 1e-6
    activation: str = "gelu"
    layer_scale: float = 0.1
    shared_bias: bool = True
    final_norm: bool = True
    num_classes: int = 0
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images):
        """Normalised images (B, S, S, 3) -> [CLS] feature (B, D), float32."""
        embed = PatchEmbed(self.patch_size, self.width, self.init_std, self.dtype, name="patch_embed")
        patches = embed(patchify(images, self.patch_size))
        self.sow("intermediates", "patches", patches)
        cls = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width)).astype(self.residual_dtype)
        x = prepend(cls, patches.astype(self.residual_dtype))
        grid = self.image_size // self.patch_size
        shared = RelativePositionBias(grid, self.num_heads, name="relative_bias")() if self.shared_bias else None
        for i in range(self.depth):
            own = None if self.shared_bias else RelativePositionBias(grid, self.num_heads, name=f"relative_bias_{i}")()
            x = Block(
                self.num_heads,
                self.mlp_dim,
                norm_order="pre",
                norm_eps=self.norm_eps,
                activation=self.activation,
                attention_biases="qv",
                layer_scale=self.layer_scale,
                init_std=self.init_std,
                dtype=self.dtype,
                residual_dtype=self.residual_dtype,
                name=f"block_{i}",
            )(x, bias=shared if self.shared_bias else own).out
            self.sow("intermediates", f"layer_{i + 1}", x)
        norm = LayerNorm(self.norm_eps, name="norm") if self.final_norm else lambda x: x
        x = x.astype(jnp.float32)
        self.sow("intermediates", "tokens", norm(x[:, 1:]))
        if self.num_classes:
            pooled = LayerNorm(self.norm_eps, name="fc_norm")(x[:, 1:].mean(axis=1))
            self.sow("intermediates", "logits", nn.Dense(self.num_classes, name="head")(pooled))
        return norm(x[:, 0])


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
