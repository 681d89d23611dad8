"""Images as codes: the teacher's [CLS] is projected to a short unit vector and its nearest code taken (spec 16)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.losses.codebook import nearest_code
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.pairs import dot_products
from smke_jax.models.beit import RelativePositionBias
from smke_jax.models.layers import Block, Dense


def _random_codes(key, shape):
    return normalise(jax.random.normal(key, shape))


class Down(nn.Module):
    """Projection of [CLS] (B, D) -> latent (B, code_dim) of length 1, float32."""

    code_dim: int

    @nn.compact
    def __call__(self, cls):
        hidden = jnp.tanh(Dense(cls.shape[-1], name="fc1")(cls))
        return normalise(Dense(self.code_dim, name="fc2")(hidden))


class Autoencoder(nn.Module):
    """A vector quantiser with a decoder that rebuilds [CLS] from the code and a few patches of the image.

    The decoder is one BEiT block with a relative position bias over [code, patches].  A learned token replaces a share
    `masked` of the patches, so that the decoder depends on the code.
    """

    code_dim: int
    num_heads: int
    mlp_dim: int
    masked: float = 0.9
    norm_eps: float = 1e-6
    activation: str = "gelu"
    dtype: jnp.dtype = jnp.float32  # of the decoder
    residual_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, cls, patches, codes):
        """[CLS] (B, D), embedded patches (B, N, D) and codes (J, S) of length 1 -> three float32 arrays:

        latent (B, S), its cosines with all codes (B, J), and the rebuilt [CLS] (B, D).
        The gradient by the chosen code is passed to the latent as it is (straight-through).  The rng 'mask' draws the
        masked patches.
        """
        batch, count, width = patches.shape
        latent = Down(self.code_dim, name="down")(cls)
        cosines = dot_products(jax.lax.stop_gradient(latent), codes)
        code = codes[jnp.argmax(cosines, axis=-1)]
        x = Dense(width, name="up")(latent + jax.lax.stop_gradient(code - latent))

        mask_token = self.param("mask_token", nn.initializers.normal(0.02), (width,))
        order = jnp.argsort(jax.random.uniform(self.make_rng("mask"), (batch, count)), axis=1)
        # Every image keeps the same number of patches, rounded down.  1e-6 makes up for the rounding of `masked`:
        # 10 · (1 - 0.9) is 0.9999….
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
            residual_dtype=self.residual_dtype,
            name="decoder",
        )
        return latent, cosines, block(x, bias=bias).out[:, 0].astype(jnp.float32)


class Quantizer(nn.Module):
    """The part of a trained Autoencoder that gives codes: [CLS] (B, D) -> the number of its nearest code (B,) int32."""

    num_codes: int
    code_dim: int

    @nn.compact
    def __call__(self, cls):
        codes = self.param("codes", _random_codes, (self.num_codes, self.code_dim))
        return nearest_code(Down(self.code_dim, name="down")(cls), codes)
