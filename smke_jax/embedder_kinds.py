"""How models of each type are used: their passes, their preprocessing and their vocabulary."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from smke_jax.data.clip_tokenizer import load_clip_tokenizer, load_vocabulary
from smke_jax.data.tokenizer import Tokenizer, load_tokenizer
from smke_jax.data.transforms import centre_crop, squash
from smke_jax.errors import UserError
from smke_jax.models.build import build_model
from smke_jax.models.teachers import TEACHERS
from smke_jax.passes.aligned import aligned, modalities
from smke_jax.passes.base import Pass, statistics_of, to_network
from smke_jax.passes.classify import Mixing, classify_image
from smke_jax.passes.encode import encode_image, encode_text
from smke_jax.passes.features import features
from smke_jax.passes.fuse import towers

NETWORK = "embedder"  # what the passes call the model


def kind_of(description: dict) -> "Kind":
    if description["type"] not in KINDS:
        raise UserError(f"a model of type {description['type']!r} cannot be loaded: known are {', '.join(KINDS)}")
    return KINDS[description["type"]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """How models of one type are used.

    passes:    description -> {'image' or 'text': (passes that read it, the embedding that they make)}
    view:      (image, size) -> uint8 (size, size, 3): what the network sees of an image
    normalise: whether embeddings are L2-normalised
    load_tokenizer: of the vocabulary in a directory
    vocabulary: the files that it needs there
    """

    passes: Callable[[dict], Mapping[str, tuple[tuple[Pass, ...], str]]]
    view: Callable[[np.ndarray, int], np.ndarray] = squash
    normalise: bool = False
    load_tokenizer: Callable[[Path], Tokenizer] = load_vocabulary
    vocabulary: str = "vocab.txt or tokenizer.json"


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


KINDS = {
    "student": Kind(_student, normalise=True),
    "fused_towers": Kind(_fused, normalise=True),
    "aligned": Kind(_aligned, normalise=True),
    "clip": Kind(
        _clip,
        centre_crop,
        normalise=True,
        load_tokenizer=load_clip_tokenizer,
        vocabulary="tokenizer.json, or vocab.json and merges.txt",
    ),
    "classifier": Kind(_classifier, centre_crop),
    **dict.fromkeys(TEACHERS, Kind(_teacher, centre_crop)),
    "bert": Kind(_bert, load_tokenizer=load_tokenizer),
}
