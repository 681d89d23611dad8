"""An image as one code: the teacher's [CLS] goes down to a unit vector, to the nearest code, and back up (spec 16)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.losses.codebook import nearest_code
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.pairs import dot_products
from smke_jax.models.layers import Block
from smke_jax.models.teachers import RelativePositionBias


def _random_codes(key, shape):
    return normalise(jax.random.normal(key, shape))


class Down(nn.Module):
    """[CLS] (B, D) -> latent (B, code_dim) of length 1, fp32."""

    code_dim: int

    @nn.compact
    def __call__(self, cls):
        hidden = jnp.tanh(nn.Dense(cls.shape[-1], name="fc1")(cls))
        return normalise(nn.Dense(self.code_dim, name="fc2")(hidden))


class Autoencoder(nn.Module):
    """Down, one code, and a decoder that rebuilds [CLS] from the code and a few patches of the image.

    The decoder is one BEiT block with a relative position bias over [code, patches], a share `masked` of the patches
    replaced by a learned token: what the image shows can reach it through the code alone, details through the rest.
    """

    code_dim: int
    num_heads: int
    mlp_dim: int
    masked: float = 0.9
    norm_eps: float = 1e-6
    activation: str = "gelu"
    dtype: jnp.dtype = jnp.float32  # of the decoder

    @nn.compact
    def __call__(self, cls, patches, codes):
        """[CLS] (B, D), embedded patches (B, N, D), unit codes (J, S) -> latent (B, S), cosines (B, J), [CLS] (B, D).

        Draws the masks from the rng 'mask'.  The gradient of the chosen code goes straight through to the latent.
        """
        batch, count, width = patches.shape
        latent = Down(self.code_dim, name="down")(cls)
        cosines = dot_products(jax.lax.stop_gradient(latent), codes)
        code = codes[jnp.argmax(cosines, axis=-1)]
        x = nn.Dense(width, name="up")(latent + jax.lax.stop_gradient(code - latent))

        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (width,))
        order = jnp.argsort(jax.random.uniform(self.make_rng("mask"), (batch, count)), axis=1)
        # Exactly so many of every image; what is a whole number but for rounding is that number.
        kept = order < int(count * (1 - self.masked) + 1e-6)
        x = jnp.concatenate([x[:, None], jnp.where(kept[..., None], patches, mask_token)], axis=1)
        bias = RelativePositionBias(math.isqrt(count), self.num_heads, nn.initializers.zeros, name="relative_bias")()
        block = Block(
            self.num_heads,
            self.mlp_dim,
            norm_order="pre",
            norm_eps=self.norm_eps,
            activation=self.activation,
            attention_biases="qv",
            init_std=0.0,
            dtype=self.dtype,
            name="decoder",
        )
        return latent, cosines, block(x.astype(self.dtype), bias=bias).out[:, 0].astype(jnp.float32)


class Quantizer(nn.Module):
    """What is kept of an Autoencoder: [CLS] (B, D) -> the number of its code (B,) int32."""

    num_codes: int
    code_dim: int

    @nn.compact
    def __call__(self, cls):
        codes = self.param("codes", _random_codes, (self.num_codes, self.code_dim))
        return nearest_code(Down(self.code_dim, name="down")(cls), codes)
