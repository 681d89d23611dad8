"""An encoder in a file of weights: the model that the file holds, or the tower of the CLIP or of the export in it."""

from collections.abc import Mapping
from typing import Any

from smke_jax.convert.params_file import load_params, read_description
from smke_jax.errors import UserError
from smke_jax.models.clip import tower_of
from smke_jax.models.teachers import TEACHERS
from smke_jax.models.towers import TEXT_TOWERS

CLIP = "clip"
IMAGENETS = ("data2vec2",)  # families whose files need not say it: all were trained with ImageNet's statistics
BESIDE = {"image": ("mean", "std"), "text": ("vocab_size",)}  # what a student's export says of both towers at once
WORD_HEAD = "word_head"  # of a BERT: no part of the encoder
FEATURE = ("pool", "pools", "layers", "close_up")  # what a feature is, besides the weights of its encoder
USE = ("makes", "image", *FEATURE)  # how an aligned export runs an encoder


def describe_encoder(path: str, tower: str) -> dict[str, Any]:
    """The description {'type': …, fields} of the encoder in `path`.

    Of a CLIP, of a classifier of images, and of an export of image and text, that is the one of its `tower`, 'image' or
    'text'.  Raises UserError for an export with no such encoder or with several.
    """
    return {name: said for name, said in _located(path, tower)[1].items() if name != WORD_HEAD}


def load_encoder(path: str, tower: str) -> Any:
    """Its parameters, a nested dict of fp32 arrays."""
    return load_with_word_head(path, tower)[0]


def load_with_word_head(path: str, tower: str = "text") -> tuple[Any, Any]:
    """(its parameters, those of the head of masked words that came with a BERT), read at once; None without a head."""
    params = load_params(path)
    for name in _located(path, tower)[0]:
        params = params[name]
    return {name: x for name, x in params.items() if name != WORD_HEAD}, params.get(WORD_HEAD)


def _located(path: str, tower: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """(where the parameters of the encoder stand in the file, its description)."""
    model = read_description(path).get("model", {})
    find = _INSIDE.get(model.get("type"), lambda model, tower, path: ((), dict(model)))
    return find(model, tower, path)


def _in_clip(model: Mapping[str, Any], tower: str, path: str):
    return (f"{tower}_encoder",), tower_of(model, tower)


def _in_student(model: Mapping[str, Any], tower: str, path: str):
    if tower not in model:
        return (), dict(model)  # what it is called, and is not
    beside = {name: model[name] for name in BESIDE[tower] if name in model}
    return (f"{tower}_encoder",), {**model[tower], **beside}


def _in_classifier(model: Mapping[str, Any], tower: str, path: str):
    if tower != "image":
        return (), dict(model)
    return ("encoder",), {**model["image"], **{name: model[name] for name in BESIDE["image"] if name in model}}


def _in_aligned(model: Mapping[str, Any], tower: str, path: str):
    kinds = {"image": TEACHERS, "text": TEXT_TOWERS}[tower]
    found = {name: own for name, own in model["networks"].items() if own["type"] in kinds}
    if len(found) != 1:
        raise UserError(
            f"{path} has {len(found)} {tower} towers ({', '.join(found) or 'none'}): give the file of one of them"
        )
    ((name, own),) = found.items()
    return (name,), {key: value for key, value in own.items() if key not in USE}


_INSIDE = {
    CLIP: _in_clip,
    "student": _in_student,
    "fused_towers": _in_student,
    "classifier": _in_classifier,
    "aligned": _in_aligned,
}


def check_pixels(path: str, description: dict[str, Any]) -> None:
    """Raises UserError where the description of an image encoder does not say what its pixels were normalised with."""
    missing = [name for name in ("mean", "std") if name not in description]
    if missing and description["type"] not in IMAGENETS:
        raise UserError(
            f"{path} does not say the {' and '.join(missing)} of its pixels: convert it again, with --mean and --std"
        )
