"""Projections of other networks' features into one space: all that is learned where the towers are frozen (LiT)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.limits import ABOVE_0
from smke_jax.models.fields import check_fields
from smke_jax.models.projections import build_projections
from smke_jax.models.shared import SHARED
from smke_jax.networks.base import Network
from smke_jax.passes.project import project


def projections(
    *,
    image: tuple[str, ...] = ("target/feature",),
    text: tuple[str, ...] = ("words/feature",),
    width: int = 512,
    hidden: int = 0,
    dropout: float = 0.0,
    shared: Mapping[str, Any] | None = None,
    head: int | None = None,
    mixup_alpha: float = 1.0,
) -> Network:
    """Images and captions in one space of `width` channels, from features that other networks make.

    image, text: the features of each, such as 'photo/feature'; several stand side by side
    hidden:  channels of the MLP of each projection; 0 is a linear layer
    dropout: of the features, and within the MLP
    shared:  a part 'transformer' or 'mlp' after both projections, as in S-SMKE; None leaves it out
    head:    channels of the head that predicts a teacher's feature; None leaves it out
    mixup_alpha: above 0, of the Beta distribution of 'mixed_image/…' and 'mixed_text/…', for terms that read them
    """
    if shared is not None:
        check_fields("shared", shared, SHARED)
    ABOVE_0.check("mixup_alpha", mixup_alpha)
    description = {
        "type": "projections", "image": tuple(image), "text": tuple(text), "width": width, "hidden": hidden,
        "dropout": dropout, "shared": None if shared is None else dict(shared), "head": head,
    }  # fmt: skip
    model = build_projections(description)

    def init(key, specs):
        for name in (*image, *text):
            if name not in specs:
                raise UserError(f"nothing makes {name}: name a network in config.networks that does")
        widths = (sum(specs[name].shape[-1] for name in names) for names in (image, text))
        return model.init(key, *(jnp.zeros((2, width)) for width in widths))["params"]

    return Network(
        init,
        lambda name, specs: project(model, name, image=tuple(image), text=tuple(text), mixup_alpha=mixup_alpha),
        export=lambda params, slots: (params, description),
        export_with=(*image, *text),
    )
