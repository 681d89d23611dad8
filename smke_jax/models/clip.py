"""CLIP (Radford et al. 2021) with a Vision Transformer: two towers and projections into one space (spec A.1)."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.errors import UserError
from smke_jax.models.fields import build_from
from smke_jax.models.layers import Dense, kernel_init, run_blocks
from smke_jax.models.vit import Vit


class ClipTextTower(nn.Module):
    """CLIP's text tower.  ids (B, L) int -> (B, L, D), the output at the end-of-text token first.

    Attention is causal.  So the start of text, which stands first, sees nothing of the caption, and its output is left
    out: the end of text, which has seen all, takes its place, and stands at its own place too.  Tokens after it change
    nothing.  The end of text is the last token in `mask` (B, L), 1 = token; without a mask, the one with the largest
    id.
    `added` (D,) is added to every token before the first block.
    It equals transformers' CLIPTextModel.  UserError for captions longer than `max_positions`.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    max_positions: int = 77
    norm_eps: float = 1e-5
    activation: str = "quick_gelu"
    dropout: float = 0.0
    init_std: float = 0.02
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    norm_order = "pre"  # `run_blocks` reads it too.  It is the same for the whole family, so it is no field.

    @nn.compact
    def __call__(self, ids, mask=None, *, added=None, deterministic: bool = True):
        length = ids.shape[1]
        if length > self.max_positions:
            raise UserError(f"captions are {length} tokens long, this encoder has {self.max_positions} positions")
        words = self.param("word_embedding", kernel_init(0.02), (self.vocab_size, self.width))
        positions = self.param("position_embedding", kernel_init(0.01), (self.max_positions, self.width))
        x = words[ids].astype(self.residual_dtype) + positions[:length].astype(self.residual_dtype)
        if added is not None:
            x += added.astype(self.residual_dtype)
        later = np.triu(np.ones((length, length), bool), k=1)
        bias = jnp.where(later, -jnp.inf, 0.0)[None, None]
        x = run_blocks(self, x, bias=bias, deterministic=deterministic)
        end = jnp.argmax(ids, axis=1) if mask is None else mask.sum(axis=1) - 1
        return jnp.concatenate([x[jnp.arange(len(ids)), end][:, None], x[:, 1:]], axis=1)


class ClipTextEncoder(ClipTextTower):
    """The same for the feature of the end-of-text token alone.  ids (B, L) int -> (B, D), float32."""

    @nn.compact
    def __call__(self, ids):
        return super().__call__(ids)[:, 0].astype(jnp.float32)


class Clip(nn.Module):
    """Two towers with a projection each, and the logarithm of the scale of their cosine similarities.

    Features (B, embed_dim) are float32 and not normalised.
    """

    image_encoder: Vit
    text_encoder: ClipTextEncoder
    embed_dim: int

    def setup(self):
        self.image_projection = Dense(self.embed_dim, use_bias=False)
        self.text_projection = Dense(self.embed_dim, use_bias=False)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(math.log(1 / 0.07)), ())

    def encode_image(self, images) -> jax.Array:
        """Normalised images (B, S, S, 3) -> features, see the class."""
        return self.image_projection(self.image_encoder(images))

    def encode_text(self, ids, mask=None) -> jax.Array:
        """Token ids (B, L), each row with its end-of-text token -> features, see the class.

        `mask` is not read: it stands here because other image-text models need one.
        """
        return self.text_projection(self.text_encoder(ids))

    def __call__(self, images, ids, mask=None):
        """Features of both modalities."""
        return self.encode_image(images), self.encode_text(ids)


def build_clip(config) -> Clip:
    """The model of `config`: its entries `image` and `text` hold the fields of the towers."""
    dtypes = {name: config.get(name, "float32") for name in ("dtype", "residual_dtype")}
    image = build_from(tower_of(config, "image") | dtypes, Vit)
    text = build_from(tower_of(config, "text") | dtypes, ClipTextEncoder)
    return Clip(image_encoder=image, text_encoder=text, embed_dim=config["embed_dim"])


def tower_of(config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """The description {'type': …, fields} of the 'image' or 'text' tower of a CLIP, as a model by itself.

    That of the image tower has the statistics of pixels, where `config` has them.
    """
    if tower == "text":
        return {"type": "clip_text", **config["text"]}
    pixels = {name: config[name] for name in ("mean", "std") if name in config}
    return {"type": "vit", **config["image"], "patch_bias": False, "norm_embeddings": True, **pixels}
