"""Two towers and a fusion encoder on top of them, with their heads: the network of ALBEF and MAMO."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.models.fields import build_from
from smke_jax.models.fusion import FUSIONS, Fused
from smke_jax.models.layers import Dense, kernel_init
from smke_jax.models.text import WordHead
from smke_jax.models.towers import IMAGE_TOWERS, TEXT_TOWERS

POOLS = ("cls", "mean")
MATCHES = 1  # the class of 'match' that says that image and caption belong together


class FusedTowers(nn.Module):
    """An image tower and a text tower whose tokens meet in a fusion encoder (masked recipes, spec B.2 and B.3).

    embed: channels of what retrieval compares; pool: what they are made of, 'cls' or the 'mean' over the tokens that
    are no padding.  The head of words predicts by the transposed table of the text tower's words, as BERT's does.
    """

    image_encoder: nn.Module
    text_encoder: nn.Module
    fusion: nn.Module
    vocab_size: int
    embed: int = 256
    pool: str = "cls"
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        init = kernel_init(self.init_std)
        self.image_projection = Dense(self.embed, kernel_init=init, dtype=self.dtype)
        self.text_projection = Dense(self.embed, kernel_init=init, dtype=self.dtype)
        self.match_head = Dense(2, kernel_init=init)
        self.word_head = WordHead(self.vocab_size, self.init_std, self.dtype)

    def encode_image(self, images, *, hidden=None, deterministic: bool = True) -> dict[str, jax.Array]:
        """Normalised images (B, S, S, 3) -> 'states' (B, 1 + N, Di) and 'out' (B, embed), not normalised.

        hidden: see `smke_jax.models.vision.hide`; only of a tower of patches
        """
        some = {} if hidden is None else {"hidden": hidden}
        states = self.image_encoder(images, **some, deterministic=deterministic)
        return {"states": states, "out": self._out(self.image_projection, states, None)}

    def encode_text(self, ids, mask, *, deterministic: bool = True) -> dict[str, jax.Array]:
        """Ids and mask (B, L), 1 = token -> 'states' (B, L, Dt) and 'out' (B, embed), not normalised."""
        states = self.text_encoder(ids, mask, deterministic=deterministic)
        return {"states": states, "out": self._out(self.text_projection, states, mask)}

    def fuse(self, image, text, mask, *, deterministic: bool = True) -> Fused:
        """States (B, 1 + N, Di) and (B, L, Dt), mask (B, L) of the words."""
        return self.fusion(image, text, mask, deterministic=deterministic)

    def match(self, cls) -> jax.Array:
        """Fused [CLS] (B, D) -> logits (B, 2), float32: of no match, and of a match."""
        return self.match_head(cls.astype(jnp.float32))

    def words(self, tokens, table) -> jax.Array:
        """Fused tokens (B, M, D) and the table of words (V, Dt) -> logits (B, M, V), float32."""
        return self.word_head(tokens, table)

    def __call__(self, images, ids, mask):
        """Initialisation calls this, because it needs every parameter once."""
        image, text = self.encode_image(images), self.encode_text(ids, mask)
        fused = self.fuse(image["states"], text["states"], mask)
        table = self.text_encoder.variables["params"]["word_embedding"]
        return image, text, fused, self.match(fused.cls), self.words(fused.text, table)

    def _out(self, projection, states, mask):
        if self.pool == "cls":
            return projection(states[:, 0]).astype(jnp.float32)
        x = states.astype(jnp.float32)
        if mask is None:
            return projection(x.mean(axis=1)).astype(jnp.float32)
        mask = mask[:, :, None].astype(jnp.float32)
        return projection((x * mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)).astype(jnp.float32)


def build_fused_towers(description: Mapping[str, Any]) -> FusedTowers:
    """The network of `description`: the fields of its parts in 'image', 'text' and 'fusion', its own beside them.

    'dtype' and 'residual_dtype' are those of all parts; 'remat' too, 'none' where it is missing.
    """
    for_all = {name: description[name] for name in ("dtype", "residual_dtype")}
    for_all["remat"] = description.get("remat", "none")
    words = description["vocab_size"]

    def part(modules, fields, **more):
        return build_from({**fields, **for_all, **more}, modules[fields["type"]])

    return FusedTowers(
        part(IMAGE_TOWERS, description["image"]),
        part(TEXT_TOWERS, description["text"], vocab_size=words),
        part(FUSIONS, description["fusion"]),
        vocab_size=words,
        embed=description["embed"],
        pool=description["pool"],
        dtype=jnp.dtype(description["dtype"]),
    )
