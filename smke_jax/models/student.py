"""The student: two towers, what they share, and one head that predicts what the teacher says (spec 0.2, 5-9)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.models.fields import fields_of
from smke_jax.models.layers import LayerNorm, LayerScale, kernel_init, run_block
from smke_jax.models.shared import SHARED
from smke_jax.models.text import TextEncoder
from smke_jax.models.vision import ImageEncoder

TEXT, IMAGE = 0, 1  # rows of the token-type table
TOKEN_TYPES_AT = ("before", "after")  # the blocks of the towers


class Student(nn.Module):
    """Image and text towers whose sequences go, separately, through the same layers.

    `token_types` adds a vector per modality to every token, times a learned scale that starts at `token_type_scale`
    (None: no scale), at one of TOKEN_TYPES_AT: before the towers' first block, or after their last (spec 9).
    `encode_image` and `encode_text` return, all from position 0 and un-normalised:
      'fc1'  (B, mlp_dim)     first MLP layer of the (last) shared block before its activation
      'out'  (B, D)           output of what is shared: the retrieval embedding
      'head' (B, target_dim)  head(LN(out)): the prediction of the teacher's [CLS] or logits
    They sow 'tokens' (B, L - 1, D) and 'head_tokens' (B, L - 1, target_dim): 'out' and 'head' from all other positions.
    """

    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    shared: nn.Module  # one of SHARED, or any other that is called like a Block
    target_dim: int
    token_types: bool = True
    token_types_at: str = "after"
    token_type_scale: float | None = 1e-5
    norm_eps: float = 1e-6
    init_std: float = 0.02
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        width = self.image_encoder.width
        if self.text_encoder.width != width:
            raise UserError(
                f"the shared block needs equal widths: image {width}, text {self.text_encoder.width}; set both alike"
            )
        if self.token_types:
            self.type_embedding = self.param("type_embedding", kernel_init(0.02), (2, width))
            if self.token_type_scale is not None:
                self.type_scale = LayerScale(self.token_type_scale)
        self.head_norm = LayerNorm(self.norm_eps, jnp.float32)
        self.head = nn.Dense(self.target_dim, kernel_init=kernel_init(self.init_std))

    def encode_image(self, images, *, deterministic: bool = True) -> dict[str, jax.Array]:
        """Normalised images (B, S, S, 3) -> representations, see the class."""
        tokens = self.image_encoder(images, added=self._token_type(IMAGE, "before"), deterministic=deterministic)
        return self._align(tokens, None, IMAGE, deterministic)

    def encode_text(self, ids, mask, *, deterministic: bool = True) -> dict[str, jax.Array]:
        """Token ids and mask (B, L), 1 = token -> representations, see the class."""
        added = self._token_type(TEXT, "before")
        tokens = self.text_encoder(ids, mask, added=added, deterministic=deterministic)
        return self._align(tokens, mask, TEXT, deterministic)

    def __call__(self, images, ids, mask):
        """Both modalities: what initialisation needs."""
        return self.encode_image(images), self.encode_text(ids, mask)

    def _token_type(self, modality: int, place: str) -> jax.Array | None:
        """What is added to every token of a modality at that place, (D,), if anything."""
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


def build_student(config, *, vocab_size: int, target_dim: int) -> Student:
    """The student that `config` describes: its own fields, and those of its parts 'image', 'text' and 'shared'.

    vocab_size: of the tokenizer; target_dim: channels of the head
    """
    common = {"dtype": jnp.dtype(config.dtype), "remat": config.get("remat", "none")}
    image, text, shared = config.image, config.text, config.shared
    shared_type = SHARED[shared.get("type", "transformer")]
    parts = {
        "image_encoder": ImageEncoder(**fields_of(image, ImageEncoder), **common),
        "text_encoder": TextEncoder(**fields_of(text, TextEncoder), vocab_size=vocab_size, **common),
        "shared": shared_type(**fields_of(shared, shared_type), dtype=common["dtype"]),
    }
    own = {"target_dim": target_dim, "init_std": shared.init_std, **common}
    return Student(**fields_of(config, Student) | parts | own)
