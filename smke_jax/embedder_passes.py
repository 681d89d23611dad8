"""The passes by which models of each type embed images and texts; separate, since they need Flax to be imported."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp

from smke_jax.embedder_kinds import NETWORK
from smke_jax.models.build import build_model
from smke_jax.models.teachers import TEACHERS
from smke_jax.passes.aligned import aligned, modalities
from smke_jax.passes.base import Pass, statistics_of, to_network
from smke_jax.passes.classify import Mixing, classify_image
from smke_jax.passes.encode import encode_image, encode_text
from smke_jax.passes.features import features
from smke_jax.passes.fuse import towers

Passes = Mapping[str, tuple[tuple[Pass, ...], str]]


def passes_of(description: dict) -> Passes:
    """{'image' or 'text': (passes that read it, the embedding that they make)} of the model of `description`."""
    return PASSES[description["type"]](description)


def _student(description):
    model, level = build_model(description), description.get("level", "out")
    return {
        "image": ((encode_image(model, NETWORK, **statistics_of(description)),), f"image/{level}"),
        "text": ((encode_text(model, NETWORK),), f"text/{level}"),
    }


def _fused(description):
    image, text = towers(build_model(description), NETWORK, **statistics_of(description))
    return {"image": ((image,), "image/out"), "text": ((text,), "text/out")}


def _aligned(description):
    names = {modality: f"{modality}/{description['level']}" for modality in modalities(description)}
    return {modality: (aligned(description, name), name) for modality, name in names.items()}


def _teacher(description):
    return {"image": ((features(build_model(description), NETWORK, **statistics_of(description)),), "target/cls")}


def _classifier(description):
    passes = classify_image(build_model(description), NETWORK, mixing=Mixing(), **statistics_of(description))
    return {"image": (passes[:1], "class/feature")}


def _bert(description):
    model = build_model(description)

    def encode(params, arrays, key, train):
        tokens, _ = model.apply({"params": params[NETWORK]}, arrays["text"], arrays["text_mask"])
        mask = arrays["text_mask"][:, :, None].astype(jnp.float32)
        return {"text": (tokens * mask).sum(1) / mask.sum(1)}

    return {"text": ((Pass("text", (NETWORK,), ("text", "text_mask"), ("text",), encode),), "text")}


def _clip(description):
    model = build_model(description)
    statistics = statistics_of(description)

    def image(params, arrays, key, train):
        pixels = to_network(arrays["image"], **statistics)
        return {"image": model.apply({"params": params[NETWORK]}, pixels, method="encode_image")}

    def text(params, arrays, key, train):
        return {"text": model.apply({"params": params[NETWORK]}, arrays["text"], method="encode_text")}

    return {
        "image": ((Pass("image", (NETWORK,), ("image",), ("image",), image),), "image"),
        "text": ((Pass("text", (NETWORK,), ("text",), ("text",), text),), "text"),
    }


PASSES: dict[str, Callable[[dict], Passes]] = {
    "student": _student,
    "fused_towers": _fused,
    "aligned": _aligned,
    "clip": _clip,
    "classifier": _classifier,
    **dict.fromkeys(TEACHERS, _teacher),
    "bert": _bert,
}
