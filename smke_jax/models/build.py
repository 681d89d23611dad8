"""Models from their descriptions.  A description is the {'type': …, fields} that every file of weights holds."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.descriptions import image_sizes
from smke_jax.models.classifier import build_classifier
from smke_jax.models.clip import build_clip
from smke_jax.models.fields import fields_of
from smke_jax.models.fused_towers import build_fused_towers
from smke_jax.models.quantizer import Quantizer
from smke_jax.models.student import build_student
from smke_jax.models.teachers import TEACHERS, build_teacher
from smke_jax.models.text import TEXT_ENCODERS, build_text_encoder


def _student(description: dict) -> nn.Module:
    sizes = {name: description[name] for name in ("vocab_size", "target_dim")}
    return build_student(description, **sizes)


def _quantizer(description: dict) -> nn.Module:
    return Quantizer(**fields_of(description, Quantizer))


BUILDERS = {
    "student": _student,
    "quantizer": _quantizer,
    "classifier": build_classifier,
    "clip": build_clip,
    "fused_towers": build_fused_towers,
    **dict.fromkeys(TEACHERS, build_teacher),
    **dict.fromkeys(TEXT_ENCODERS, build_text_encoder),
}


def build_model(description: dict) -> nn.Module:
    """The module of `description`: an image-text model, an image teacher, a text encoder or a quantizer."""
    return BUILDERS[description["type"]](description)


def param_shapes(description: dict) -> Any:
    """The shapes of the parameters of the model of `description`, as a tree of ShapeDtypeStruct."""
    model = build_model(description)
    if description["type"] == "quantizer":
        vector = jax.ShapeDtypeStruct((1, description["width"]), jnp.float32)
        return jax.eval_shape(model.init, jax.random.key(0), vector)["params"]
    sizes = image_sizes(description).values()
    reads_text = "text" in description or description["type"] in TEXT_ENCODERS
    images = tuple(jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32) for size in sizes)
    tokens = (jax.ShapeDtypeStruct((1, 3), jnp.int32),) * 2 if reads_text else ()
    return jax.eval_shape(model.init, jax.random.key(0), *images, *tokens)["params"]
