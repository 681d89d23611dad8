"""What a network begins with, read from files that `smke convert` or `smke export` wrote."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.convert.params_file import TOKENIZER, digests, fit, load_params, read_description
from smke_jax.convert.temperatures import by_level
from smke_jax.data.tokenizer import load_tokenizer
from smke_jax.errors import UserError
from smke_jax.models.teachers import Data2Vec2
from smke_jax.models.text import Bert
from smke_jax.networks.base import Start
from smke_jax.passes.base import MEAN, STD

RANDOM = "random"  # what a config says where nothing is read from a file

# The encoders that each tower can be made of, by the type in their descriptions.
FITTING = {"image": {"data2vec2": Data2Vec2}, "text": {"bert": Bert}}
# What may differ from the network that is read: how it was and is trained, and the size of the images.
MAY_DIFFER = {
    "head", "start", "image_start", "text_start", "trained", "target_dim", "vocab_size", "level", "max_length",
    "logit_scales", "image_size", "pooler", "dropout", "token_drop", "init_std", "dtype", "residual_dtype", "remat",
    "parent", "name", "init",
}  # fmt: skip


def student_start(path: str, shapes: Any, description: Mapping[str, Any]) -> Start:
    """The whole student of an export, and the temperatures that it was trained to, for terms of the same names.

    shapes: of the student's parameters; description: of the student that is trained here.
    Raises UserError for another architecture.
    """
    model = read_description(path).get("model", {})
    if model.get("type") != "student":
        raise UserError(
            f"start: {path} holds a model of type {model.get('type')!r}: give what `smke export` wrote of a run with a "
            "student"
        )
    parts = {"": (model, description)}
    parts |= {f"{part}.": (model[part], description[part]) for part in ("image", "text", "shared")}
    wrong = [line for prefix, pair in parts.items() for line in _differences(*pair, prefix=prefix)]
    if wrong:
        raise UserError(f"the student is not that of {path}: {'; '.join(wrong)}; set them alike")
    ours, theirs = shapes["head"]["kernel"].shape[-1], model["target_dim"]
    if ours != theirs:
        raise UserError(f"the head of {path} has {theirs} channels, not {ours}: set head={theirs}")
    loaded = fit(shapes, load_params(path), source=path)
    scales = {name: {"logit_scale": values} for name, values in by_level(model.get("logit_scales", {})).items()}
    origins = {"": f"{len(jax.tree.leaves(loaded))} tensors from {path}"}
    return Start(loaded, origins, {"weights": digests(path)["weights"], **_source(path)}, scales, _vocabulary(path))


def tower_start(tower: str, path: str, shapes: Any, fields: Mapping[str, Any]) -> Start:
    """The first layers of an encoder for the 'image' or 'text' tower of a student.

    shapes: of the tower's parameters; fields: of the tower.
    Raises UserError where the file is of another architecture, or has fewer layers than the tower.
    """
    model = read_description(path).get("model", {})
    module = FITTING[tower].get(model.get("type"))
    if module is None:
        raise UserError(
            f"{tower}_start: {path} holds a model of type {model.get('type')!r}; this tower starts from "
            f"{' or '.join(FITTING[tower])}"
        )
    defaults = {f.name: f.default for f in dataclasses.fields(module) if f.default is not dataclasses.MISSING}
    theirs = {k: v for k, v in {**defaults, **model}.items() if k != "depth"}
    wrong = _differences(theirs, fields)
    if wrong:
        raise UserError(f"the {tower} tower cannot start from {path}: {'; '.join(wrong)}; set them alike")
    if (tuple(model.get("mean", MEAN)), tuple(model.get("std", STD))) != (MEAN, STD):
        raise UserError(
            f"{path} was trained on pixels normalised otherwise than the student's: it cannot start from it"
        )
    if model["depth"] < fields["depth"]:
        raise UserError(f"{path} has {model['depth']} layers: the depth of the {tower} tower is {fields['depth']}")
    if tower == "text" and (words := model["vocab_size"]) != (ours := shapes["word_embedding"].shape[0]):
        raise UserError(
            f"{path} has {words} words and the tokenizer {ours}: set config.task.tokenizer to the folder of the "
            f"vocabulary that it was trained with, such as {path}/tokenizer"
        )
    params = fit(shapes, load_params(path), source=path)
    layers = f"layers 0-{fields['depth'] - 1} of {model['depth']}"
    origin = f"{len(jax.tree.leaves(params))} tensors from {path} ({model['type']}, {layers})"
    expects = _vocabulary(path) if tower == "text" else {}
    return Start(params, {"": origin}, {"weights": digests(path)["weights"], **_source(path)}, expects=expects)


def _vocabulary(path) -> dict[str, str]:
    """What a run has to read text with that begins from `path`, where a vocabulary lies beside its weights."""
    folder = Path(path) / TOKENIZER
    return {"tokenizer": load_tokenizer(folder).digest} if folder.is_dir() else {}


def _source(path) -> dict[str, str]:
    return {what: digest for what, digest in digests(path).items() if what != "weights"}


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """'field is 1 there and 2 here' of the fields that both have and that have to agree."""
    both = [key for key in theirs if key in ours and key not in MAY_DIFFER and not isinstance(ours[key], Mapping)]
    return [f"{prefix}{k} is {theirs[k]!r} there and {ours[k]!r} here" for k in both if theirs[k] != ours[k]]


def started(params: Any, start: Start | None) -> Any:
    """`params` (arrays on devices) with what `start` has in its place, laid out as before."""
    return params if start is None else _replaced(params, start.params)


def _replaced(old, new):
    if isinstance(new, Mapping):
        return {**old, **{name: _replaced(old[name], x) for name, x in new.items() if name in old}}
    return jax.device_put(jnp.asarray(np.asarray(new), old.dtype), old.sharding)


def describe_origins(name: str, params: Any, start: Start | None) -> list[str]:
    """One line for each part of the parameters of the network `name`: the file it starts from, or that it is random.

    A network that starts from one file as a whole gets one line.
    """
    origins = start.origins if start else {}
    if set(origins) == {""}:
        return [f"{name}: {origins['']}"]
    return [
        f"{name}/{part}: {origins.get(part, origins.get('', RANDOM))}"
        for part in params
        if jax.tree.leaves(params[part])
    ]
