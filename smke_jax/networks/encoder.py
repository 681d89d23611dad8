"""An image encoder with a projector, trained from images alone: a teacher of one's own."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from smke_jax.models.fields import check_fields
from smke_jax.models.projected import ProjectedEncoder
from smke_jax.models.teachers import TEACHERS, build_teacher
from smke_jax.networks.base import Network
from smke_jax.passes.base import MEAN, STD
from smke_jax.passes.views import VIEWS, one_view, two_views


def encoder(
    *,
    model: Mapping[str, Any],
    projector: tuple[int, ...] = (),
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    dtype: str = "float32",
) -> Network:
    """The encoder that the part `model` describes, with an MLP of the widths `projector` on its [CLS].

    `mean` and `std` normalise its pixels.  `smke export` writes the encoder without the projector.
    """
    check_fields("model", model, TEACHERS)
    description = {**model, "mean": tuple(mean), "std": tuple(std)}
    module = ProjectedEncoder(build_teacher({**description, "dtype": dtype}), tuple(projector))
    pixels = {"mean": tuple(mean), "std": tuple(std)}
    size = model["image_size"]

    def init(key, specs):
        return module.init(key, jnp.zeros((2, size, size, 3)))["params"]

    def forward(name, specs):
        views = (two_views(module, name, **pixels),) if VIEWS[0] in specs else ()
        return (*views, one_view(module, name, **pixels))

    return Network(
        init,
        forward,
        sizes=dict.fromkeys(("image", *VIEWS), size),
        export=lambda params, slots: (params["encoder"], description),
    )
