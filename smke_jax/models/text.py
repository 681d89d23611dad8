"""Text encoders: BERT without its pooler, the student's tower (spec 0.2), and BERT with it."""

import flax.linen as nn
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.models.fields import build_from
from smke_jax.models.layers import LayerNorm, kernel_init, run_blocks


class TextEncoder(nn.Module):
    """BERT encoder.  ids (B, L) int, mask (B, L), 1 = token, 0 = padding -> (B, L, D), [CLS] first.

    Outputs at tokens do not depend on the number of padding positions.  Every token has BERT's token type 0.
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
    norm_order: str = "post"
    norm_eps: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.0
    init_std: float = 0.02
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids, mask, *, added=None, deterministic: bool = True):
        length = ids.shape[1]
        if length > self.max_positions:
            raise UserError(f"captions are {length} tokens long, this encoder has {self.max_positions} positions")

        def table(name, rows):
            return self.param(name, kernel_init(0.02), (rows, self.width)).astype(self.residual_dtype)

        x = table("word_embedding", self.vocab_size)[ids]
        x += table("position_embedding", self.max_positions)[:length]
        x += table("type_embedding", self.type_vocab_size)[0]
        x = LayerNorm(self.norm_eps, self.residual_dtype, name="embedding_norm")(x)
        if added is not None:
            x += added.astype(self.residual_dtype)
        return run_blocks(self, x, mask, deterministic=deterministic)


class Bert(TextEncoder):
    """BERT with its pooler.  -> (tokens (B, L, D), pooled (B, D)).

    Without `pooler`, for files that hold none, pooled is None.
    """

    pooler: bool = True

    @nn.compact
    def __call__(self, ids, mask, *, deterministic: bool = True):
        tokens = super().__call__(ids, mask, deterministic=deterministic)
        if not self.pooler:
            return tokens, None
        return tokens, jnp.tanh(nn.Dense(self.width, dtype=self.dtype, name="pooler")(tokens[:, 0]))


TEXT_ENCODERS = {"bert": Bert}


def build_text_encoder(config) -> nn.Module:
    """The text encoder of `config`, which holds a `type` of TEXT_ENCODERS and fields of that module."""
    return build_from(config, TEXT_ENCODERS[config["type"]])
