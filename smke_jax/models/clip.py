"""CLIP (Radford et al. 2021) with a Vision Transformer: two towers and projections into one space (spec A.1)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.errors import UserError
from smke_jax.models.layers import kernel_init, run_blocks
from smke_jax.models.vit import Vit


class ClipTextEncoder(nn.Module):
    """CLIP's text tower.  ids (B, L) int -> feature of the end-of-text token (B, D), float32.

    The end-of-text token is the one with the largest id.  Attention is causal, so tokens after it change nothing.
    It equals transformers' CLIPTextModel.  ValueError for captions longer than `max_positions`.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    max_positions: int = 77
    norm_eps: float = 1e-5
    activation: str = "quick_gelu"
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    # `run_blocks` reads these too.  They are the same for the whole family, so they are no fields.
    norm_order = "pre"
    dropout = 0.0
    remat = "none"

    @nn.compact
    def __call__(self, ids):
        length = ids.shape[1]
        if length > self.max_positions:
            raise UserError(f"captions are {length} tokens long, this encoder has {self.max_positions} positions")
        words = self.param("word_embedding", kernel_init(0.02), (self.vocab_size, self.width))
        positions = self.param("position_embedding", kernel_init(0.01), (self.max_positions, self.width))
        x = words[ids].astype(self.residual_dtype) + positions[:length].astype(self.residual_dtype)
        later = np.triu(np.ones((length, length), bool), k=1)
        x = run_blocks(self, x, bias=jnp.where(later, -jnp.inf, 0.0)[None, None])
        return x[jnp.arange(len(ids)), jnp.argmax(ids, axis=1)].astype(jnp.float32)


class Clip(nn.Module):
    """Two towers with a projection each, and the logarithm of the scale of their cosine similarities.

    Features (B, embed_dim) are float32 and not normalised.
    """

    image_encoder: Vit
    text_encoder: ClipTextEncoder
    embed_dim: int

    def setup(self):
        self.image_projection = nn.Dense(self.embed_dim, use_bias=False)
        self.text_projection = nn.Dense(self.embed_dim, use_bias=False)
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
    dtypes = {name: jnp.dtype(config.get(name, "float32")) for name in ("dtype", "residual_dtype")}
    image = Vit(**config["image"], patch_bias=False, norm_embeddings=True, **dtypes)
    text = ClipTextEncoder(**config["text"], **dtypes)
    return Clip(image_encoder=image, text_encoder=text, embed_dim=config["embed_dim"])
