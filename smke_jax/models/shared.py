"""What both modalities go through after their towers: Transformer blocks, or the MLP of SHRe (spec 0.2)."""

import flax.linen as nn
import jax.numpy as jnp

from smke_jax.models.layers import ACTIVATIONS, Block, BlockOutput, LayerNorm, kernel_init


class SharedTransformer(nn.Module):
    """Pre-norm blocks with LayerScale and biases of q and v, as BEiT has them -> the output of the last one."""

    num_heads: int
    mlp_dim: int
    depth: int = 1
    norm_eps: float = 1e-6
    activation: str = "gelu"
    layer_scale: float | None = 0.2
    dropout: float = 0.0
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

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
                name=f"block_{i}",
            )
            if self.depth == 1:
                nn.share_scope(self, block)  # a level for one block alone would say nothing
            output = block(x, mask, bias, deterministic=deterministic)
            x = output.out
        return output


class SharedMlp(nn.Module):
    """The first two of SHRe's three layers, on [CLS] alone: fc1 -> activation -> LayerNorm -> fc2; no residual.

    The third is the student's head with its norm.  (B, L, D) -> out (B, 1, D), fc1 (B, 1, mlp_dim).
    """

    mlp_dim: int
    norm_eps: float = 1e-6
    activation: str = "gelu"
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask=None, bias=None, *, deterministic: bool = True) -> BlockOutput:
        init = kernel_init(self.init_std)
        fc1 = nn.Dense(self.mlp_dim, kernel_init=init, dtype=self.dtype, name="fc1")(x[:, :1])
        y = LayerNorm(self.norm_eps, self.dtype, name="norm")(ACTIVATIONS[self.activation](fc1))
        out = nn.Dense(x.shape[-1], kernel_init=init, dtype=self.dtype, name="fc2")(y)
        return BlockOutput(out, fc1, out)


SHARED = {"transformer": SharedTransformer, "mlp": SharedMlp}
