"""The layers that images and captions share after their towers: Transformer blocks, or the MLP of SHRe (spec 0.2)."""

import flax.linen as nn
import jax.numpy as jnp

from smke_jax.activations import ACTIVATIONS
from smke_jax.models.layers import Block, BlockOutput, Dense, LayerNorm, kernel_init


class SharedTransformer(nn.Module):
    """Pre-norm blocks with LayerScale and biases of q and v, as in BEiT.  It is called like a Block.

    -> the output of the last block.
    """

    num_heads: int
    mlp_dim: int
    depth: int = 1
    norm_eps: float = 1e-6
    activation: str = "gelu"
    layer_scale: float | None = 0.2
    dropout: float = 0.0
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask=None, bias=None, *, deterministic: bool = True) -> BlockOutput:
        for i in range(self.depth):
            block = Block(
                self.num_heads,
                self.mlp_dim,
                norm_order="pre",
                norm_eps=self.norm_eps,
                activation=self.activation,
                attention_biases="qv",
                layer_scale=self.layer_scale,
                dropout=self.dropout,
                init_std=self.init_std,
                dtype=self.dtype,
                residual_dtype=self.residual_dtype,
                name=f"block_{i}",
            )
            if self.depth == 1:
                nn.share_scope(self, block)  # a single block's parameters need no level 'block_0'
            output = block(x, mask, bias, deterministic=deterministic)
            x = output.out
        return output


class SharedMlp(nn.Module):
    """The first two of SHRe's three layers: fc2(LayerNorm(activation(fc1([CLS])))).  It is called like a Block.

    The third layer is the student's head with its LayerNorm.  There is no residual sum, so there is no
    `residual_dtype`.
    x (B, L, D) -> BlockOutput of [CLS] alone: out (B, 1, D), fc1 (B, 1, mlp_dim), and out again as mlp, in `dtype`.
    """

    mlp_dim: int
    norm_eps: float = 1e-6
    activation: str = "gelu"
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask=None, bias=None, *, deterministic: bool = True) -> BlockOutput:
        init = kernel_init(self.init_std)
        fc1 = Dense(self.mlp_dim, kernel_init=init, dtype=self.dtype, name="fc1")(x[:, :1])
        y = LayerNorm(self.norm_eps, self.dtype, name="norm")(ACTIVATIONS[self.activation](fc1))
        out = Dense(x.shape[-1], kernel_init=init, dtype=self.dtype, name="fc2")(y)
        return BlockOutput(out, fc1, out)


SHARED = {"transformer": SharedTransformer, "mlp": SharedMlp}
