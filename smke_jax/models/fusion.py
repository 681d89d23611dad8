"""Fusion encoders: layers in which the words of a caption and the patches of an image meet (masked recipes, spec B.2).

Two kinds.  'concat' is one sequence of both in which every token attends to every other.  'cross' is ALBEF's: words
attend to words and then to the image, so that it has no fused patches.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.models.layers import REMAT, Attention, Dense, LayerNorm, Mlp, kernel_init, prepend, run_blocks


class Fused(NamedTuple):
    cls: jax.Array  # (B, D) of the pair
    text: jax.Array  # (B, L, D)
    image: jax.Array | None  # (B, N, D) at patches; None of a fusion that makes none


class Fusion(nn.Module):
    """The fields of every fusion encoder: those of a BERT's layers, and `width`, the channels of what is fused."""

    width: int
    depth: int = 2
    num_heads: int = 12
    mlp_dim: int = 3072
    norm_order: str = "post"
    norm_eps: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.0
    init_std: float = 0.02
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32


class ConcatFusion(Fusion):
    """Self-attention over [a learned [CLS]; patches; words].

    The tokens of a modality of another width go through a linear layer without bias first.  The image's own [CLS] is
    left out.  Padding is masked.  There are no further embeddings of places or modalities: the tokens have their own.
    Source: masked recipes, spec B.2; there the [CLS] is BERT's embedding of [CLS], and here it is learned anew.
    """

    fuses_patches = True

    @nn.compact
    def __call__(self, image, text, mask, *, deterministic: bool = True) -> Fused:
        """image (B, 1 + N, Di), text (B, L, Dt), mask (B, L), 1 = token."""
        cls = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width))
        patches, words = self._fitted(image[:, 1:], "image_projection"), self._fitted(text, "text_projection")
        x = prepend(cls.astype(self.residual_dtype), jnp.concatenate([patches, words], axis=1))
        there = jnp.ones((len(mask), 1 + patches.shape[1]), mask.dtype)
        x = run_blocks(self, x, jnp.concatenate([there, mask], axis=1), deterministic=deterministic)
        return Fused(x[:, 0], x[:, 1 + patches.shape[1] :], x[:, 1 : 1 + patches.shape[1]])

    def _fitted(self, tokens, name):
        if tokens.shape[-1] != self.width:
            init = kernel_init(self.init_std)
            tokens = Dense(self.width, use_bias=False, kernel_init=init, dtype=self.dtype, name=name)(tokens)
        return tokens.astype(self.residual_dtype)


class CrossBlock(nn.Module):
    """x += attention(x); x += attention of x to `others`; x += MLP(x); each with a LayerNorm after it, or before.

    The fields are those of `Block`, whose parameters have the same names here: a layer of BERT can be read into it.
    Source: ALBEF (Li et al. 2021, section 3.1), whose layers are post-norm.
    """

    num_heads: int
    mlp_dim: int
    norm_order: str
    norm_eps: float
    activation: str
    dropout: float
    init_std: float
    dtype: jnp.dtype
    residual_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, mask, others, *, deterministic: bool = True):
        pre = self.norm_order == "pre"
        drop = nn.Dropout(self.dropout, deterministic=deterministic)

        def add(x, norm, branch):
            normed = LayerNorm(self.norm_eps, self.dtype if pre else self.residual_dtype, name=norm)
            y = x + drop(branch(normed(x) if pre else x)).astype(self.residual_dtype)
            return y if pre else normed(y)

        def attention(name):
            return Attention(self.num_heads, init_std=self.init_std, dtype=self.dtype, name=name)

        mlp = Mlp(self.mlp_dim, self.activation, self.init_std, self.dtype, name="mlp")
        x = add(x.astype(self.residual_dtype), "norm1", lambda y: attention("attention")(y, mask))
        x = add(x, "norm_cross", lambda y: attention("cross")(y, others=others))
        return add(x, "norm2", lambda y: mlp(y)[1])


class CrossFusion(Fusion):
    """Words attend to words and to all tokens of the image, [CLS] included; the first word, [CLS], is that of the pair.

    The width is that of the text: the layers continue those of the text tower.  Source: ALBEF; spec B.2.
    """

    depth: int = 6

    fuses_patches = False

    @nn.compact
    def __call__(self, image, text, mask, *, deterministic: bool = True) -> Fused:
        """image (B, 1 + N, Di), text (B, L, D), mask (B, L), 1 = token."""
        x = text
        for i in range(self.depth):
            block = CrossBlock(
                self.num_heads, self.mlp_dim, self.norm_order, self.norm_eps, self.activation, self.dropout,
                self.init_std, self.dtype, self.residual_dtype, name=f"block_{i}",
            )  # fmt: skip
            run = REMAT[self.remat](lambda block, x, others: block(x, mask, others, deterministic=deterministic))
            x = run(block, x, image)
        if self.norm_order == "pre":
            x = LayerNorm(self.norm_eps, self.residual_dtype, name="norm")(x)
        return Fused(x[:, 0], x, None)


FUSIONS = {"concat": ConcatFusion, "cross": CrossFusion}
