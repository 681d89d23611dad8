"""Projections of other networks' features into one space: all that is learned where the towers are frozen (LiT)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.limits import ABOVE_0
from smke_jax.models.fields import check_fields
from smke_jax.models.projections import build_projections
from smke_jax.models.shared import SHARED
from smke_jax.networks.base import Network, Start
from smke_jax.networks.projection_start import projection_start
from smke_jax.networks.start import RANDOM, together
from smke_jax.passes.project import project

TRAINED = {"both": True, "none": False, "image": ("^image/",), "text": ("^text/",)}
WATCHED = {"both": ("image", "text"), "none": (), "image": ("image",), "text": ("text",)}


def projections(
    *,
    image: tuple[str, ...] = ("target/feature",),
    text: tuple[str, ...] = ("words/feature",),
    width: int = 512,
    hidden: int = 0,
    dropout: float = 0.0,
    bias: bool = True,
    shared: Mapping[str, Any] | None = None,
    head: int | None = None,
    mixup_alpha: float = 1.0,
    makes: str = "",
    image_start: str = RANDOM,
    text_start: str = RANDOM,
    trained: str = "both",
) -> Network:
    """Images and captions in one space of `width` channels, from features that other networks make.

    image, text: the features of each, such as 'photo/feature'; several stand side by side.  () leaves a modality out
    hidden:  channels of the MLP of each projection; 0 is a linear layer
    dropout: of the features, and within the MLP
    bias:    of the linear layer; CLIP has none
    shared:  a part 'transformer' or 'mlp' after both projections, as in S-SMKE; None leaves it out
    head:    channels of the head that predicts a teacher's feature; None leaves it out
    mixup_alpha: above 0, of the Beta distribution of 'mixed_image/…' and 'mixed_text/…', for terms that read them
    makes:   '' makes 'image/out' and 'text/out'; 'teacher' makes 'teacher_image/out' and 'teacher_text/out'
    image_start, text_start: the projection of that modality from what `smke export` wrote of a run with projections, or
             `smke convert` of a CLIP; its temperature comes along for a term `itc`
    trained: both | image | text | none: the modality whose projection is trained
    """
    if shared is not None:
        check_fields("shared", shared, SHARED)
    ABOVE_0.check("mixup_alpha", mixup_alpha)
    if trained not in TRAINED:
        raise UserError(f"trained is {trained!r}: give one of {', '.join(TRAINED)}")
    if not image and not text:
        raise UserError("image and text are both empty: name the features of one of them")
    description = {
        "type": "projections", "image": tuple(image), "text": tuple(text), "width": width, "hidden": hidden,
        "dropout": dropout, "bias": bias, "shared": None if shared is None else dict(shared), "head": head,
    }  # fmt: skip
    model = build_projections(description)

    def init(key, specs):
        for name in (*image, *text):
            if name not in specs:
                raise UserError(f"nothing makes {name}: name a network in config.networks that does")
        widths = (sum(specs[name].shape[-1] for name in names) for names in (image, text))
        return model.init(key, *(jnp.zeros((2, width)) for width in widths))["params"]

    def begin(shapes) -> Start | None:
        files = {"image": image_start, "text": text_start}
        found = {
            side: projection_start(path, side, shapes[side], description)
            for side, path in files.items()
            if path != RANDOM and description[side]
        }
        return together(found) if found else None

    return Network(
        init,
        lambda name, specs: project(
            model,
            name,
            image=tuple(image),
            text=tuple(text),
            mixup_alpha=mixup_alpha,
            makes=makes,
            watched=WATCHED[trained],
        ),
        begin,
        trained=TRAINED[trained],
        export=lambda params, slots: (params, description),
        export_with=(*image, *text),
    )
