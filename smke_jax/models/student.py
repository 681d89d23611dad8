"""S-SMKE's student: two towers, one shared Transformer block, one regression head (spec 0.2, 8, 9c)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.models.fields import fields_of
from smke_jax.models.layers import Block, LayerNorm, LayerScale, kernel_init, run_block
from smke_jax.models.text import TextEncoder
from smke_jax.models.vision import ImageEncoder

TEXT, IMAGE = 0, 1  # rows of the token-type table


class Student(nn.Module):
    """Image and text towers whose sequences go, separately, through the same block.

    `encode_image` and `encode_text` return, all from position 0 and un-normalised:
      'fc1'  (B, mlp_dim)     first MLP layer of the shared block before its activation
      'out'  (B, D)           shared block output: the retrieval embedding
      'head' (B, target_dim)  head(LN(out)): the prediction of the teacher's [CLS]
    """

    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    shared: Block
    target_dim: int
    token_types: bool = True
    norm_eps: float = 1e-6
    init_std: float = 0.02
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        width = self.image_encoder.width
        if self.text_encoder.width != width:
            raise ValueError(
                f"the shared block needs equal widths: image {width}, text {self.text_encoder.width}; set both alike"
            )
        if self.token_types:
            self.type_embedding = self.param("type_embedding", kernel_init(0.02), (2, width))
            self.type_scale = LayerScale(1e-5)
        self.head_norm = LayerNorm(self.norm_eps, jnp.float32)
        self.head = nn.Dense(self.target_dim, kernel_init=kernel_init(self.init_std))

    def encode_image(self, images, *, deterministic: bool = True) -> dict[str, jax.Array]:
        """Normalised images (B, S, S, 3) -> representations, see the class."""
        tokens = self.image_encoder(images, deterministic=deterministic)
        return self._align(tokens, None, IMAGE, deterministic)

    def encode_text(self, ids, mask, *, deterministic: bool = True) -> dict[str, jax.Array]:
        """Token ids and mask (B, L), 1 = token -> representations, see the class."""
        tokens = self.text_encoder(ids, mask, deterministic=deterministic)
        return self._align(tokens, mask, TEXT, deterministic)

    def __call__(self, images, ids, mask):
        """Both modalities: what initialisation needs."""
        return self.encode_image(images), self.encode_text(ids, mask)

    def _align(self, tokens, mask, modality: int, deterministic: bool):
        if self.token_types:
            # Added after the encoders with a LayerScale of 1e-5 (variant 9c): it starts as almost nothing.
            tokens += self.type_scale(self.type_embedding[modality]).astype(tokens.dtype)
        block = run_block(self.shared, self.remat, tokens, mask, deterministic=deterministic)
        out = block.out[:, 0].astype(jnp.float32)
        return {"fc1": block.fc1[:, 0].astype(jnp.float32), "out": out, "head": self.head(self.head_norm(out))}


def build_student(config, *, vocab_size: int, target_dim: int) -> Student:
    """The student that `config.student` describes.

    `vocab_size` comes from the tokenizer and `target_dim` from the teacher, so that neither can disagree with them.
    """
    common = {"dtype": jnp.dtype(config.dtype), "remat": config.get("remat", "none")}
    image, text, shared = config.image, config.text, config.shared
    return Student(
        image_encoder=ImageEncoder(**fields_of(image, ImageEncoder), **common),
        text_encoder=TextEncoder(**fields_of(text, TextEncoder), vocab_size=vocab_size, **common),
        shared=Block(**fields_of(shared, Block), norm_order="pre", attention_biases="qv", dtype=common["dtype"]),
        target_dim=target_dim,
        token_types=config.token_types,
        init_std=shared.init_std,
        **common,
    )
