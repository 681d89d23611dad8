"""Transformer parts shared by every encoder: attention, MLP, block, LayerScale.

LayerNorm epsilon, GELU form, norm order and which of q, k, v carry a bias are explicit fields: BERT, Data2Vec2 and
BEiT differ in each of them, and Flax's defaults are none of theirs.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.errors import UserError

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIP's
    "relu": jax.nn.relu,
}


# What a block's backward pass computes again instead of keeping: nothing, all but matrix products, or everything.
REMAT = {
    "none": lambda run: run,
    "dots": functools.partial(nn.remat, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    "blocks": nn.remat,
}


def kernel_init(std: float):
    """Normal(0, std), 0.02 being fairseq's `init_bert_params`; 0 scales by fan-in, for towers trained from scratch."""
    return nn.initializers.normal(std) if std else nn.initializers.lecun_normal()


class LayerNorm(nn.Module):
    """LayerNorm with fp32 statistics, returned in the compute dtype.  (…, D) -> (…, D)."""

    eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        norm = nn.LayerNorm(epsilon=self.eps, dtype=jnp.float32, use_fast_variance=False, name="norm")
        # One module deep would add a level to every path for nothing, so share this scope.
        nn.share_scope(self, norm)
        return norm(x).astype(self.dtype)


class LayerScale(nn.Module):
    """x * gamma, gamma (D,) learned from `initial`."""

    initial: float

    @nn.compact
    def __call__(self, x):
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * gamma.astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention; logits and softmax in fp32.

    `biases` names which of q, k, v have one: "qkv" (BERT, Data2Vec2) or "qv" (BEiT: a key bias would cancel in the
    softmax anyway).  x (B, L, D), mask (B, L) with 1 = token, bias broadcastable to (B, H, L, L) -> (B, L, D).
    """

    num_heads: int
    biases: str = "qkv"
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask=None, bias=None):
        width = x.shape[-1]
        if width % self.num_heads:
            raise UserError(f"width {width} does not divide into {self.num_heads} heads")
        head_dim = width // self.num_heads

        def project(name):
            y = nn.Dense(
                width,
                use_bias=name[0] in self.biases,
                kernel_init=kernel_init(self.init_std),
                dtype=self.dtype,
                name=name,
            )(x)
            # Heads before positions: the batched products below then need no hidden copies, which cost a CPU dear.
            return y.reshape(*y.shape[:-1], self.num_heads, head_dim).transpose(0, 2, 1, 3)

        q, k, v = project("query"), project("key"), project("value")  # (B, H, L, d)
        logits = jnp.einsum("bhqd,bhkd->bhqk", q * head_dim**-0.5, k, preferred_element_type=jnp.float32)
        if bias is not None:
            logits += bias.astype(jnp.float32)
        if mask is not None:
            # A finite minimum instead of -inf: a row that is all padding then stays finite.
            logits = jnp.where(mask[:, None, None, :].astype(bool), logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits).astype(self.dtype)
        out = jnp.einsum("bhqk,bhkd->bhqd", weights, v).transpose(0, 2, 1, 3).reshape(x.shape)
        return nn.Dense(width, kernel_init=kernel_init(self.init_std), dtype=self.dtype, name="out")(out)


class Mlp(nn.Module):
    """fc1 -> activation -> fc2.  (…, D) -> (fc1 before the activation (…, mlp_dim), output (…, D))."""

    mlp_dim: int
    activation: str = "gelu"
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        init = kernel_init(self.init_std)
        hidden = nn.Dense(self.mlp_dim, kernel_init=init, dtype=self.dtype, name="fc1")(x)
        out = ACTIVATIONS[self.activation](hidden)
        return hidden, nn.Dense(x.shape[-1], kernel_init=init, dtype=self.dtype, name="fc2")(out)


class BlockOutput(NamedTuple):
    out: jax.Array  # (B, L, D) after the last residual (and, post-norm, its LayerNorm)
    fc1: jax.Array  # (B, L, mlp_dim) first MLP layer before the activation: the intermediate ITC level
    mlp: jax.Array  # (B, L, D) MLP output before residual and norm: what Data2Vec2 regresses


class Block(nn.Module):
    """One Transformer layer, pre-norm (BEiT, the shared block) or post-norm (BERT, Data2Vec2); spec 0.2.

    pre:  h = x + ls1·Attn(LN1 x);  out = h + ls2·MLP(LN2 h)
    post: h = LN1(x + Attn(x));     out = LN2(h + MLP(h))
    `layer_scale` is the initial gamma of ls1 and ls2, None leaves both out.
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

    @nn.compact
    def __call__(self, x, mask=None, bias=None, *, deterministic: bool = True) -> BlockOutput:
        if self.norm_order not in ("pre", "post"):
            raise UserError(f"norm_order {self.norm_order!r} is neither 'pre' nor 'post'")
        pre = self.norm_order == "pre"
        norm1 = LayerNorm(self.norm_eps, self.dtype, name="norm1")
        norm2 = LayerNorm(self.norm_eps, self.dtype, name="norm2")
        attention = Attention(self.num_heads, self.attention_biases, self.init_std, self.dtype, name="attention")
        mlp = Mlp(self.mlp_dim, self.activation, self.init_std, self.dtype, name="mlp")
        drop = nn.Dropout(self.dropout, deterministic=deterministic)

        def scale(name, y):
            return y if self.layer_scale is None else LayerScale(self.layer_scale, name=name)(y)

        h = x + scale("ls1", drop(attention(norm1(x) if pre else x, mask, bias)))
        if not pre:
            h = norm1(h)
        fc1, y = mlp(norm2(h) if pre else h)
        out = h + scale("ls2", drop(y))
        return BlockOutput(out if pre else norm2(out), fc1, y)


def run_block(block: Block, remat: str, x, mask=None, bias=None, *, deterministic: bool = True) -> BlockOutput:
    """`block(x, mask, bias)`, rematerialised as the key `remat` of REMAT says."""
    run = REMAT[remat](lambda module, x: module(x, mask, bias, deterministic=deterministic))
    return run(block, x)


def run_blocks(encoder: nn.Module, x, mask=None, bias=None, *, layer_scale=None, deterministic: bool = True):
    """Dropout, the layers 'block_<i>' and, pre-norm, the last LayerNorm of a tower.  (B, L, D) -> (B, L, D).

    Call it inside the compact method of `encoder`, whose attributes of the same names it reads and to which the
    parameters belong.  `mask`, `bias` and `layer_scale` are those of Attention and Block.
    """
    x = nn.Dropout(encoder.dropout, deterministic=deterministic)(x)
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
            name=f"block_{i}",
        )
        x = run_block(block, encoder.remat, x, mask, bias, deterministic=deterministic).out
    return LayerNorm(encoder.norm_eps, encoder.dtype, name="norm")(x) if encoder.norm_order == "pre" else x


def prepend(token: jax.Array, tokens: jax.Array) -> jax.Array:
    """The same token (1, 1, D) before each sequence (B, L, D) -> (B, 1 + L, D)."""
    return jnp.concatenate([jnp.broadcast_to(token, (len(tokens), 1, tokens.shape[-1])), tokens], axis=1)
