"""Models from their descriptions: the {'type': …, fields} that stand in every file of weights."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from smke_jax.models.student import build_student
from smke_jax.models.teachers import TEACHERS, build_teacher
from smke_jax.models.text import TEXT_ENCODERS, build_text_encoder


def build_model(description: dict) -> nn.Module:
    """The module that `description` describes: a student, an image teacher or a text encoder."""
    if description["type"] == "student":
        config = ConfigDict(description)
        return build_student(config, vocab_size=config.vocab_size, target_dim=config.target_dim)
    return (build_teacher if description["type"] in TEACHERS else build_text_encoder)(description)


def param_shapes(description: dict) -> Any:
    """The parameter tree of that model, as shapes."""
    model = build_model(description)
    is_student, text_only = description["type"] == "student", description["type"] in TEXT_ENCODERS
    size = (description["image"] if is_student else description).get("image_size")
    images = () if text_only else (jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),)
    tokens = (jax.ShapeDtypeStruct((1, 3), jnp.int32),) * 2 if is_student or text_only else ()
    return jax.eval_shape(model.init, jax.random.key(0), *images, *tokens)["params"]
