"""A model that several networks make together, such as frozen towers and their projections, from its description."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from smke_jax.descriptions import image_sizes
from smke_jax.models.build import param_shapes
from smke_jax.models.fields import build_from
from smke_jax.models.projections import build_projections
from smke_jax.models.teachers import TEACHERS, build_teacher
from smke_jax.models.towers import TEXT_TOWERS
from smke_jax.passes.base import Pass, narrowed, statistics_of
from smke_jax.passes.features import features
from smke_jax.passes.project import project
from smke_jax.passes.words import words

Description = Mapping[str, Any]


def aligned(description: Description, *wanted: str) -> tuple[Pass, ...]:
    """The passes that make the representations `wanted`, such as 'image/out', in the order in which they run.

    description: holds 'networks', {name: {'type': …, fields of its model, and what its passes need to know}}, those
                 first whose features others read
    """
    passes = [p for name, own in description["networks"].items() for p in PASSES[own["type"]](name, own)]
    needed, chosen = set(wanted), []
    for p in reversed(passes):
        if needed & set(p.provides):
            chosen.append(narrowed(p, needed))
            needed |= set(p.needs)
    return tuple(reversed(chosen))


def modalities(description: Description) -> tuple[str, ...]:
    """'image' and 'text' as far as the model of `description` embeds them; an aligned one may project one alone."""
    own = next((x for x in description.get("networks", {}).values() if x["type"] == "projections"), None)
    return tuple(side for side in ("image", "text") if own is None or own[side])


def by_network(description: Description, params: Any, network: str) -> Mapping[str, Any]:
    """{network: parameters} of any model: an aligned one has several networks, any other is `network` alone."""
    return params if description["type"] == "aligned" else {network: params}


def shapes_of(description: Description) -> Any:
    """The shapes of all parameters of an aligned model, {network: tree of ShapeDtypeStruct}."""
    tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    arrays = {"text": tokens, "text_mask": tokens}
    arrays |= {
        name: jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8) for name, size in image_sizes(description).items()
    }
    shapes = {}
    for name, own in description["networks"].items():
        if own["type"] == "projections":
            sides = [[arrays[feature] for feature in own[side]] for side in ("image", "text")]
            inputs = (jax.ShapeDtypeStruct((1, sum(x.shape[1] for x in side)), jnp.float32) for side in sides)
            shapes[name] = jax.eval_shape(build_projections(own).init, jax.random.key(0), *inputs)["params"]
            continue
        # In a tower's description "image" is the array that it reads, and in an image-text model's a part of it.
        shapes[name] = (
            _tower_shapes(own)
            if own["type"] in TEXT_TOWERS
            else param_shapes({key: x for key, x in own.items() if key != "image"})
        )
        for p in PASSES[own["type"]](name, own):
            arrays |= jax.eval_shape(lambda params, arrays, p=p: p.run(params, arrays, None, False), shapes, arrays)
    return shapes


def _tower_shapes(own: Description) -> Any:
    tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    module = build_from(own, TEXT_TOWERS[own["type"]])
    return jax.eval_shape(module.init, jax.random.key(0), tokens, tokens)["params"]


def _image_tower(name: str, own: Description) -> tuple[Pass, ...]:
    chosen = {key: own[key] for key in ("makes", "image")} | {key: tuple(own[key]) for key in ("pools", "layers")}
    close_up = own.get("close_up", 1.0)  # older exports do not say it
    return (features(build_teacher(own), name, close_up=close_up, **statistics_of(own), **chosen),)


def _text_tower(name: str, own: Description) -> tuple[Pass, ...]:
    return (words(build_from(own, TEXT_TOWERS[own["type"]]), name, makes=own["makes"], pool=own["pool"]),)


def _projections(name: str, own: Description) -> tuple[Pass, ...]:
    features = {side: tuple(own[side]) for side in ("image", "text")}
    return project(build_projections(own), name, **features)


PASSES: dict[str, Callable[[str, Description], tuple[Pass, ...]]] = {
    **dict.fromkeys(TEACHERS, _image_tower),
    **dict.fromkeys(TEXT_TOWERS, _text_tower),
    "projections": _projections,
}
