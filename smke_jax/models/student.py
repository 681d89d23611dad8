"""The student: two towers, the layers they share, and the head that predicts the teacher's feature (spec 0.2, 5-9)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.models.fields import build_from
from smke_jax.models.layers import Dense, LayerNorm, LayerScale, kernel_init, run_block
from smke_jax.models.shared import SHARED
from smke_jax.models.towers import IMAGE_TOWERS, TEXT_TOWERS

TEXT, IMAGE = 0, 1  # rows of the token-type table
TOKEN_TYPES_AT = ("before", "after")  # before the towers' first blocks, or after their last


class Student(nn.Module):
    """An image tower and a text tower, whose sequences go separately through the same shared layers.

    `width` is that of the shared layers; None is that of both towers.  A tower of another width has a learned linear
    layer after it.
    `token_types` adds one learned vector per modality to every token, at the place `token_types_at` (one of
    TOKEN_TYPES_AT; spec 9).  The vector is multiplied by a learned LayerScale that starts at `token_type_scale`, or by
    none where that is None.
    `encode_image` and `encode_text` return these, of position 0 ([CLS]), float32, not normalised:
      'fc1'  (B, mlp_dim)     first MLP layer of the last shared block, before the activation
      'out'  (B, D)           output of the shared layers: the retrieval embedding
      'head' (B, target_dim)  head(LayerNorm(out)): the prediction of the teacher's [CLS] or logits
    They sow 'tokens' (B, L - 1, D) and 'head_tokens' (B, L - 1, target_dim): 'out' and 'head' of all other positions.
    UserError where the towers differ in width and there is no `width`.
    """

    image_encoder: nn.Module  # one of IMAGE_TOWERS
    text_encoder: nn.Module  # one of TEXT_TOWERS
    shared: nn.Module  # one of SHARED, or any other module that is called like a Block
    target_dim: int
    width: int | None = None
    token_types: bool = True
    token_types_at: str = "after"
    token_type_scale: float | None = 1e-5
    norm_eps: float = 1e-6
    init_std: float = 0.02
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    residual_dtype: jnp.dtype = jnp.float32

    def setup(self):
        image, text = self.image_encoder.width, self.text_encoder.width
        width = self._width
        if not self.width and text != image:
            raise UserError(
                f"the shared block needs equal widths: image {image}, text {text}; set both alike, or give width, to "
                "which a linear layer then takes the tokens of each tower"
            )
        init = kernel_init(self.init_std)
        if image != width:
            self.image_projection = Dense(width, kernel_init=init, dtype=self.dtype)
        if text != width:
            self.text_projection = Dense(width, kernel_init=init, dtype=self.dtype)
        if (image, text) != (width, width) and self.token_types and self.token_types_at == "before":
            raise UserError("token types fit before towers of the width of the shared block alone: set "
                            "token_types_at='after'")  # fmt: skip
        if self.token_types:
            self.type_embedding = self.param("type_embedding", kernel_init(0.02), (2, width))
            if self.token_type_scale is not None:
                self.type_scale = LayerScale(self.token_type_scale)
        self.head_norm = LayerNorm(self.norm_eps, jnp.float32)
        self.head = Dense(self.target_dim, kernel_init=kernel_init(self.init_std))

    def encode_image(self, images, *, deterministic: bool = True) -> dict[str, jax.Array]:
        """Normalised images (B, S, S, 3) -> representations, see the class."""
        tokens = self.image_encoder(images, added=self._token_type(IMAGE, "before"), deterministic=deterministic)
        if self.image_encoder.width != self._width:
            tokens = self.image_projection(tokens).astype(self.residual_dtype)
        return self._align(tokens, None, IMAGE, deterministic)

    def encode_text(self, ids, mask, *, deterministic: bool = True) -> dict[str, jax.Array]:
        """Token ids and mask (B, L), 1 = token -> representations, see the class."""
        added = self._token_type(TEXT, "before")
        tokens = self.text_encoder(ids, mask, added=added, deterministic=deterministic)
        if self.text_encoder.width != self._width:
            tokens = self.text_projection(tokens).astype(self.residual_dtype)
        return self._align(tokens, mask, TEXT, deterministic)

    def __call__(self, images, ids, mask):
        """Representations of both modalities.  Initialisation calls this, because it needs every parameter once."""
        return self.encode_image(images), self.encode_text(ids, mask)

    @property
    def _width(self) -> int:
        return self.width or self.image_encoder.width

    def _token_type(self, modality: int, place: str) -> jax.Array | None:
        """The vector (D,) that is added to every token of `modality` at `place`; None where none is added."""
        if not self.token_types or place != self.token_types_at:
            return None
        row = self.type_embedding[modality]
        return row if self.token_type_scale is None else self.type_scale(row)

    def _align(self, tokens, mask, modality: int, deterministic: bool):
        added = self._token_type(modality, "after")
        tokens = tokens if added is None else tokens + added.astype(tokens.dtype)
        block = run_block(self.shared, self.remat, tokens, mask, deterministic=deterministic)
        out, tokens = block.out[:, 0].astype(jnp.float32), block.out[:, 1:]
        self.sow("intermediates", "tokens", tokens)
        self.sow("intermediates", "head_tokens", self.head(self.head_norm(tokens)))
        return {"fc1": block.fc1[:, 0].astype(jnp.float32), "out": out, "head": self.head(self.head_norm(out))}


def build_student(description: Mapping[str, Any], *, vocab_size: int, target_dim: int) -> Student:
    """The student of `description`.

    It holds fields of Student, the fields of its parts in 'image', 'text' and 'shared', and 'dtype', 'remat' and
    'residual_dtype' (float32 where it is missing) for all parts.
    vocab_size: of the tokenizer; target_dim: channels of the head
    """
    for_all = {
        "dtype": description["dtype"],
        "residual_dtype": description.get("residual_dtype", "float32"),
        "remat": description.get("remat", "none"),
    }
    shared = description["shared"]

    def part(module, fields, **more):
        return build_from({**fields, **for_all, **more}, module)

    image, text = description["image"], description["text"]

    return part(
        Student,
        description,
        image_encoder=part(IMAGE_TOWERS[image.get("type", "data2vec2")], image),
        text_encoder=part(TEXT_TOWERS[text.get("type", "bert")], text, vocab_size=vocab_size),
        shared=part(SHARED[shared.get("type", "transformer")], shared),
        target_dim=target_dim,
        init_std=shared["init_std"],
    )
