"""Text encoders: BERT without its pooler, the student's tower (spec 0.2), BERT with it, and a classifier on it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.activations import gelu
from smke_jax.errors import UserError
from smke_jax.models.fields import build_from
from smke_jax.models.layers import Dense, LayerNorm, kernel_init, run_blocks


class TextEncoder(nn.Module):
    """BERT encoder.  ids (B, L) int, mask (B, L), 1 = token, 0 = padding -> (B, L, D), [CLS] first.

    Outputs at tokens do not depend on the number of padding positions.  `types` (B, L) int are BERT's token types, 1 at
    the second sentence of a pair; without them every token has type 0.
    `word_width` above 0 is that of the table of words, whose rows a matrix then takes to `width` (ALBERT).
    `added` (D,) is added to every token after the LayerNorm of the embeddings.  ValueError for captions longer than
    `max_positions`.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    max_positions: int = 512
    type_vocab_size: int = 2
    word_width: int = 0
    norm_order: str = "post"
    norm_eps: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.0
    init_std: float = 0.02
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids, mask, *, types=None, added=None, deterministic: bool = True):
        length = ids.shape[1]
        if length > self.max_positions:
            raise UserError(f"captions are {length} tokens long, this encoder has {self.max_positions} positions")

        def table(name, rows, width=self.width):
            return self.param(name, kernel_init(0.02), (rows, width)).astype(self.residual_dtype)

        x = table("word_embedding", self.vocab_size, self.word_width or self.width)[ids]
        if self.word_width:
            widen = Dense(self.width, use_bias=False, dtype=self.residual_dtype, name="word_projection")
            x = widen(x)
        x += table("position_embedding", self.max_positions)[:length]
        x += table("type_embedding", self.type_vocab_size)[0 if types is None else types]
        x = LayerNorm(self.norm_eps, self.residual_dtype, name="embedding_norm")(x)
        if added is not None:
            x += added.astype(self.residual_dtype)
        return run_blocks(self, x, mask, deterministic=deterministic)


class WordHead(nn.Module):
    """BERT's head of masked words.  Tokens (B, M, D) and the table of words (V, D) -> logits (B, M, V), float32.

    A Linear D -> D, GELU, LayerNorm, the transposed table, a bias.
    """

    vocab_size: int
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens, table):
        width = table.shape[-1]
        x = Dense(width, kernel_init=kernel_init(self.init_std), dtype=self.dtype, name="transform")(tokens)
        x = LayerNorm(1e-12, self.dtype, name="norm")(gelu(x))
        logits = jnp.einsum("bmd,vd->bmv", x, table.astype(self.dtype), preferred_element_type=jnp.float32)
        return logits + self.param("bias", nn.initializers.zeros, (self.vocab_size,))


class Bert(TextEncoder):
    """BERT with its pooler.  -> (tokens (B, L, D), pooled (B, D)).

    Without `pooler`, for files that hold none, pooled is None.  With `word_head` it keeps the head of masked words,
    which only a network that masks words uses (`smke_jax.models.fused_towers`).
    """

    pooler: bool = True
    word_head: bool = False

    @nn.compact
    def __call__(self, ids, mask, *, deterministic: bool = True):
        tokens = super().__call__(ids, mask, deterministic=deterministic)
        if self.word_head and self.is_initializing():
            table = self.variables["params"]["word_embedding"]
            WordHead(self.vocab_size, dtype=self.dtype, name="word_head")(tokens, table)
        if not self.pooler:
            return tokens, None
        return tokens, jnp.tanh(Dense(self.width, dtype=self.dtype, name="pooler")(tokens[:, 0]))


class TextClassifier(nn.Module):
    """Class logits, or one score, of BERT's [CLS].  ids, mask, types (B, L) -> (B, outputs), float32.

    Pooler, dropout, one matrix: Linear D -> D and tanh; Linear D -> outputs.  The last matrix and its bias begin as
    PyTorch's Linear does, uniform within ±1/sqrt(D), and the pooler as BERT's own matrices do.  Source: spec 4.
    """

    encoder: TextEncoder
    outputs: int
    dropout: float = 0.1

    @nn.compact
    def __call__(self, ids, mask, *, types=None, deterministic: bool = True):
        width, dtype = self.encoder.width, self.encoder.dtype
        cls = self.encoder(ids, mask, types=types, deterministic=deterministic)[:, 0]
        pooled = jnp.tanh(Dense(width, kernel_init=kernel_init(0.02), dtype=dtype, name="pooler")(cls))
        pooled = nn.Dropout(self.dropout, deterministic=deterministic)(pooled)
        uniform = uniform_within(width**-0.5)
        return Dense(self.outputs, kernel_init=uniform, bias_init=uniform, name="head")(pooled)


def uniform_within(bound: float):
    """Initialiser of numbers drawn evenly from -`bound` to `bound`."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


TEXT_ENCODERS = {"bert": Bert}


def build_text_encoder(config) -> nn.Module:
    """The text encoder of `config`, which holds a `type` of TEXT_ENCODERS and fields of that module."""
    return build_from(config, TEXT_ENCODERS[config["type"]])
