"""Transformer parts that every encoder shares: LayerNorm, LayerScale, attention, MLP and the block made of them.

BERT, Data2Vec2 and BEiT differ in LayerNorm epsilon, GELU form, norm order and the biases of q, k and v.  Flax's
defaults fit none of the three, so each of these is an explicit field.

Two fields say in which precision a module works.  `dtype` is that of matrix products.  `residual_dtype` is that of the
residual stream: the embeddings and the sums that blocks add to.  It stays float32 by default, as under PyTorch's
autocast, because bfloat16 keeps 8 bits: adding to a number anything below 1/512 of it changes nothing.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.activations import ACTIVATIONS
from smke_jax.errors import UserError
from smke_jax.models.attention import fitted, form

# What the backward pass computes again instead of keeping it in memory: nothing, all but the outputs of matrix
# products, or the whole block.
REMAT = {
    "none": lambda run: run,
    "dots": functools.partial(nn.remat, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    "blocks": nn.remat,
}


# LayerNorm(epsilon, dtype): Flax computes the statistics and the output in float32 and rounds to `dtype` at the end.
# The fast variance, E[x²] - E[x]², would lose a variance that is small beside the mean.
LayerNorm = functools.partial(nn.LayerNorm, use_fast_variance=False)


def kernel_init(std: float):
    """Initialiser of weights: normal(0, `std`), or LeCun's (variance 1 / fan-in) where `std` is 0.

    0.02 is fairseq's `init_bert_params`.  LeCun's suits towers that are trained from scratch.
    """
    return nn.initializers.normal(std) if std else nn.initializers.lecun_normal()


def flat_dot_general(inputs, kernel, dimensions=None, **options):
    """`jax.lax.dot_general` of inputs (…, D) and a kernel (D, K), with all leading axes as one -> (…, K).

    XLA for CPUs then computes the kernel's gradient in a half to three quarters of the time: over two axes it would
    copy an operand first, and take a slower product.
    """
    del dimensions  # nn.Dense contracts the last axis with the kernel's first
    rows = inputs.reshape(-1, inputs.shape[-1])
    made = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options)
    return made.reshape(*inputs.shape[:-1], kernel.shape[-1])


Dense = functools.partial(nn.Dense, dot_general=flat_dot_general)


class LayerScale(nn.Module):
    """x · gamma in the dtype of x.  gamma (D,) is learned and starts at `initial`."""

    initial: float

    @nn.compact
    def __call__(self, x):
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * gamma.astype(x.dtype)


class Attention(nn.Module):
    """Multi-head attention of `x` to itself, or to `others`.

    Logits and softmax are in float32, matrix products and the output in `dtype`.

    `biases` names those of q, k and v that have a bias: "qkv" (BERT, Data2Vec2) or "qv" (BEiT; a key bias would cancel
    in the softmax).
    x (B, L, D); mask (B, K), 1 = token, 0 = padding; bias, added to the logits, broadcastable to (B, H, L, K);
    others (B, K, any width), what keys and values are made of, None for x itself -> (B, L, D).
    """

    num_heads: int
    biases: str = "qkv"
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask=None, bias=None, others=None):
        width = x.shape[-1]
        if width % self.num_heads:
            raise UserError(f"width {width} does not divide into {self.num_heads} heads")
        head_dim = width // self.num_heads

        dtype = jnp.dtype(self.dtype)
        attend, multiple = form(dtype, head_dim, biased=bias is not None)
        length, keys = x.shape[1], (x if others is None else others).shape[1]
        # The padding and the cut stand here because XLA fuses them with the rounding to `dtype` and with the next sum.
        own = fitted(x, multiple)
        others = own if others is None else fitted(others, multiple)

        def project(name):
            y = Dense(
                width,
                use_bias=name[0] in self.biases,
                kernel_init=kernel_init(self.init_std),
                dtype=self.dtype,
                name=name,
            )(own if name == "query" else others)
            return y.reshape(*y.shape[:-1], self.num_heads, head_dim)

        q, k, v = project("query"), project("key"), project("value")  # (B, L or K, H, d)
        out = attend(q, k, v, mask, bias, keys).reshape(own.shape)
        out = Dense(width, kernel_init=kernel_init(self.init_std), dtype=self.dtype, name="out")(out)
        return out[:, :length]


class Mlp(nn.Module):
    """fc2(activation(fc1(x))).  (…, D) -> (fc1(x) before the activation (…, mlp_dim), output (…, D)), in `dtype`."""

    mlp_dim: int
    activation: str = "gelu"
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        init = kernel_init(self.init_std)
        hidden = Dense(self.mlp_dim, kernel_init=init, dtype=self.dtype, name="fc1")(x)
        out = ACTIVATIONS[self.activation](hidden)
        return hidden, Dense(x.shape[-1], kernel_init=init, dtype=self.dtype, name="fc2")(out)


class BlockOutput(NamedTuple):
    out: jax.Array  # (B, L, D) the residual stream after the block
    fc1: jax.Array  # (B, L, mlp_dim) output of the first MLP layer before the activation: the intermediate ITC level
    mlp: jax.Array  # (B, L, D) output of the MLP before the residual sum: what Data2Vec2 regresses


class Block(nn.Module):
    """One Transformer layer, pre-norm (BEiT, the shared block) or post-norm (BERT, Data2Vec2); spec 0.2.

    pre:  h = x + ls1·Attn(LN1 x);   out = h + ls2·MLP(LN2 h)
    post: h = LN1(x + ls1·Attn(x));  out = LN2(h + ls2·MLP(h))
    `layer_scale` is the initial gamma of ls1 and ls2; None leaves both out.
    x, h and out are the residual stream, in `residual_dtype`.
    """

    num_heads: int
    mlp_dim: int
    norm_order: str = "post"
    norm_eps: float = 1e-6
    activation: str = "gelu"
    attention_biases: str = "qkv"
    layer_scale: float | None = None
    dropout: float = 0.0
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask=None, bias=None, *, deterministic: bool = True) -> BlockOutput:
        if self.norm_order not in ("pre", "post"):
            raise UserError(f"norm_order {self.norm_order!r} is neither 'pre' nor 'post'")
        pre = self.norm_order == "pre"
        # The output of a pre-norm goes into matrix products, that of a post-norm is the residual stream itself.
        norm_dtype = self.dtype if pre else self.residual_dtype
        norm1 = LayerNorm(self.norm_eps, norm_dtype, name="norm1")
        norm2 = LayerNorm(self.norm_eps, norm_dtype, name="norm2")
        attention = Attention(self.num_heads, self.attention_biases, self.init_std, self.dtype, name="attention")
        mlp = Mlp(self.mlp_dim, self.activation, self.init_std, self.dtype, name="mlp")
        drop = nn.Dropout(self.dropout, deterministic=deterministic)

        def branch(y, scale_name):
            """What is added to the residual stream for the output `y` of attention or MLP."""
            y = drop(y).astype(self.residual_dtype)
            return y if self.layer_scale is None else LayerScale(self.layer_scale, name=scale_name)(y)

        x = x.astype(self.residual_dtype)
        h = x + branch(attention(norm1(x) if pre else x, mask, bias), "ls1")
        if not pre:
            h = norm1(h)
        fc1, y = mlp(norm2(h) if pre else h)
        out = h + branch(y, "ls2")
        return BlockOutput(out if pre else norm2(out), fc1, y)


def run_block(block: Block, remat: str, x, mask=None, bias=None, *, deterministic: bool = True) -> BlockOutput:
    """`block(x, mask, bias)`, whose backward pass computes again what the entry `remat` of REMAT says."""
    run = REMAT[remat](lambda module, x: module(x, mask, bias, deterministic=deterministic))
    return run(block, x)


def run_blocks(encoder: nn.Module, x, mask=None, bias=None, *, layer_scale=None, deterministic: bool = True):
    """Dropout, the layers 'block_<i>' and, pre-norm, the last LayerNorm of a tower.  (B, L, D) -> (B, L, D).

    It is called inside the compact method of `encoder`.  It reads the fields of `encoder` that are named as those of
    Block, and `depth` and `remat`; its parameters belong to `encoder`.  `mask` and `bias` are those of Attention,
    `layer_scale` that of Block.  It sows 'layer_<i>' (B, L, D), the residual stream after the layers i = 1 … depth and
    before the last LayerNorm, 'layer_0', what the first layer gets, and 'mlp_<i>' (B, L, D), the output of the MLP of
    layer i before the residual sum.
    """
    x = nn.Dropout(encoder.dropout, deterministic=deterministic)(x)
    encoder.sow("intermediates", "layer_0", x)
    for i in range(encoder.depth):
        block = Block(
            encoder.num_heads,
            encoder.mlp_dim,
            norm_order=encoder.norm_order,
            norm_eps=encoder.norm_eps,
            activation=encoder.activation,
            layer_scale=layer_scale,
            dropout=encoder.dropout,
            init_std=encoder.init_std,
            dtype=encoder.dtype,
            residual_dtype=encoder.residual_dtype,
            name=f"block_{i}",
        )
        made = run_block(block, encoder.remat, x, mask, bias, deterministic=deterministic)
        x = made.out
        encoder.sow("intermediates", f"layer_{i + 1}", x)
        encoder.sow("intermediates", f"mlp_{i + 1}", made.mlp)
    return LayerNorm(encoder.norm_eps, encoder.residual_dtype, name="norm")(x) if encoder.norm_order == "pre" else x


def prepend(token: jax.Array, tokens: jax.Array) -> jax.Array:
    """The same token (1, 1, D) before each sequence (B, L, D) -> (B, 1 + L, D)."""
    return jnp.concatenate([jnp.broadcast_to(token, (len(tokens), 1, tokens.shape[-1])), tokens], axis=1)
