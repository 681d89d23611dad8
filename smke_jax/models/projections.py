"""Projections of features into a space that images and captions share."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from smke_jax.activations import ACTIVATIONS
from smke_jax.models.fields import build_from
from smke_jax.models.layers import Dense, LayerNorm, kernel_init
from smke_jax.models.shared import SHARED

NORM_EPS = 1e-6


class Projection(nn.Module):
    """Features (B, F) -> embeddings (B, width), float32, not normalised.

    A dropout of the features, then a linear layer; with `hidden` above 0, a residual MLP with so many hidden channels,
    a dropout and a LayerNorm before it is added to the linear layer.  Without `bias` the linear layer is a matrix.
    """

    width: int
    hidden: int = 0
    dropout: float = 0.0
    bias: bool = True

    @nn.compact
    def __call__(self, x, *, deterministic: bool = True):
        x = nn.Dropout(self.dropout, deterministic=deterministic)(x.astype(jnp.float32))
        out = Dense(self.width, use_bias=self.bias, kernel_init=kernel_init(0.0), name="linear")(x)
        if self.hidden:
            gelu = ACTIVATIONS["gelu_tanh"]
            y = gelu(
                Dense(self.hidden, kernel_init=kernel_init(0.0), name="fc1")(LayerNorm(NORM_EPS, name="norm")(out))
            )
            y = nn.Dropout(self.dropout, deterministic=deterministic)(y)
            out += Dense(self.width, kernel_init=nn.initializers.zeros, name="fc2")(y)
        return out


class Projections(nn.Module):
    """A projection of images and one of captions, a shared layer after both, and a head that predicts a teacher.

    One of `image` and `text` may be None, where the other modality is projected alone.
    `shared` is one of models.shared.SHARED, or None.  A feature goes through it as a sequence of one token.
    Each side returns 'out' (B, width), with `shared` 'fc1' (B, mlp_dim), and with `head` above 0 'head' (B, head): a
    linear layer on LayerNorm(out).  All are float32, not normalised.
    """

    image: Projection | None
    text: Projection | None
    shared: nn.Module | None = None
    head: int = 0

    def setup(self):
        if self.head:
            self.head_norm = LayerNorm(NORM_EPS)
            self.head_linear = Dense(self.head, kernel_init=kernel_init(0.02))

    def project_image(self, features, *, deterministic: bool = True):
        """Features (B, F) -> representations, see the class."""
        return self._align(self.image(features, deterministic=deterministic), deterministic)

    def project_text(self, features, *, deterministic: bool = True):
        """Features (B, F') -> representations, see the class."""
        return self._align(self.text(features, deterministic=deterministic), deterministic)

    def __call__(self, image, text):
        """Representations of both.  Initialisation calls this, because it needs every parameter once.

        Features of a modality without a projection are not read, and its representations are None.
        """
        sides = ((self.image, self.project_image, image), (self.text, self.project_text, text))
        return tuple(None if side is None else project(features) for side, project, features in sides)

    def _align(self, x, deterministic):
        made = {"out": x}
        if self.shared is not None:
            block = self.shared(x[:, None, :], None, deterministic=deterministic)
            made = {"out": block.out[:, 0].astype(jnp.float32), "fc1": block.fc1[:, 0].astype(jnp.float32)}
        if self.head:
            made["head"] = self.head_linear(self.head_norm(made["out"]))
        return made


def build_projections(description: Mapping[str, Any]) -> Projections:
    """The projections of `description`: 'width', 'hidden', 'dropout', 'head' and the fields of 'shared', or None.

    'image' and 'text' name the features of each modality, none where it has no projection.  Descriptions that say
    nothing of a 'bias' have one.
    """
    projection = Projection(
        *(description[name] for name in ("width", "hidden", "dropout")), description.get("bias", True)
    )
    shared = description["shared"]
    return Projections(
        image=projection.copy(name=None) if description["image"] else None,
        text=projection.copy(name=None) if description["text"] else None,
        shared=None if shared is None else build_from(shared, SHARED[shared["type"]]),
        head=description["head"] or 0,
    )
