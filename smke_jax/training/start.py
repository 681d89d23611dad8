"""What a student starts from: config.student.init, or config.student.image.init and config.student.text.init."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from smke_jax.convert.params_file import TOKENIZER, digests, fit, load_params, params_path, read_description
from smke_jax.errors import UserError
from smke_jax.models.teachers import Data2Vec2
from smke_jax.models.text import Bert
from smke_jax.passes.base import MEAN, STD

# The encoders that each tower can be made of, by the type in their descriptions.
FITTING = {"image": {"data2vec2": Data2Vec2}, "text": {"bert": Bert}}
# What may be otherwise than in the network started from: how it was and is trained, and the size of the images.
FREE = {
    "init",
    "head_dim",
    "image_size",
    "pooler",
    "dropout",
    "token_drop",
    "init_std",
    "dtype",
    "remat",
    "parent",
    "name",
}


class Part(NamedTuple):
    """path: in the trained parameters; params: cut to fit; origin: what to say of them; digests: of their files."""

    path: tuple[str, ...]
    params: Any
    origin: str
    digests: Mapping[str, str] = {}

    @property
    def name(self) -> str:
        return self.path[-1]


def read_parts(params: Any, config: ConfigDict) -> list[Part]:
    """What config.student names to start from, for `params`, the tree of all that is trained (arrays or shapes).

    Raises UserError where a file is missing or of another architecture, or has fewer layers than the tower.
    """
    towers = [tower for tower in FITTING if config.student[tower].init != "random"]
    if config.student.init == "random":
        return [_tower(tower, params["student"][f"{tower}_encoder"], config.student[tower]) for tower in towers]
    if towers:
        raise UserError(
            f"config.student.init starts the whole student: set config.student.{towers[0]}.init=random beside it"
        )
    return _student(params, config.student)


def _student(params, config: ConfigDict) -> list[Part]:
    """The student of an export, and the temperatures that it was trained to for terms of the same names."""
    path = config.init
    model = read_description(path).get("model", {})
    if model.get("type") != "student":
        raise UserError(
            f"config.student.init: {path} holds a model of type {model.get('type')!r}: give what `smke export` wrote "
            "of a run with a student"
        )
    parts = {"": (model, config), **{f"{part}.": (model[part], config[part]) for part in ("image", "text", "shared")}}
    wrong = [line for prefix, pair in parts.items() for line in _differences(*pair, prefix=prefix)]
    if wrong:
        raise UserError(f"config.student is not that of {path}: {'; '.join(wrong)}; set them alike")
    ours, theirs = params["student"]["head"]["kernel"].shape[-1], model["target_dim"]
    if ours != theirs:
        raise UserError(f"the head of {path} has {theirs} channels, not {ours}: set config.student.head_dim={theirs}")
    loaded = fit(params["student"], load_params(path), source=path)
    student = Part(("student",), loaded, f"{len(jax.tree.leaves(loaded))} tensors from {path}", digests(path))
    scales = []
    for name, values in model.get("logit_scales", {}).items():
        wanted = params["terms"].get(name, {}).get("logit_scale")
        if wanted is not None and len(wanted) <= len(values):
            # Levels are named from the first layer to the last, and those that are left out are the first.
            kept = np.array(values[len(values) - len(wanted) :], np.float32)
            origin = f"{len(kept)} of {len(values)} logit scales from {path}"
            scales.append(Part(("terms", name, "logit_scale"), kept, origin))
    return [student, *scales]


def _tower(tower: str, target: Any, config: ConfigDict) -> Part:
    path = config.init
    model = read_description(path).get("model", {})
    module = FITTING[tower].get(model.get("type"))
    if module is None:
        raise UserError(
            f"config.student.{tower}.init: {path} holds a model of type {model.get('type')!r}; "
            f"this tower starts from {' or '.join(FITTING[tower])}"
        )
    defaults = {f.name: f.default for f in dataclasses.fields(module) if f.default is not dataclasses.MISSING}
    theirs = {k: v for k, v in {**defaults, **model}.items() if k != "depth"}
    wrong = _differences(theirs, config)
    if wrong:
        raise UserError(f"config.student.{tower} is no tower of {path}: {'; '.join(wrong)}; set them alike")
    if (tuple(model.get("mean", MEAN)), tuple(model.get("std", STD))) != (MEAN, STD):
        raise UserError(
            f"{path} was trained on pixels normalised otherwise than the student's: it cannot start from it"
        )
    if model["depth"] < config.depth:
        raise UserError(f"{path} has {model['depth']} layers: config.student.{tower}.depth cannot be {config.depth}")
    params = fit(target, load_params(path), source=path)
    layers = f"layers 0-{config.depth - 1} of {model['depth']}"
    origin = f"{len(jax.tree.leaves(params))} tensors from {path} ({model['type']}, {layers})"
    return Part(("student", f"{tower}_encoder"), params, origin, digests(path))


def _differences(theirs: Mapping[str, Any], ours: ConfigDict, prefix: str = "") -> list[str]:
    """'field is 1 there and 2 here' of the fields that both have and that have to agree."""
    both = [key for key in theirs if key in ours and key not in FREE and not isinstance(ours[key], ConfigDict)]
    return [f"{prefix}{k} is {theirs[k]!r} there and {ours[k]!r} here" for k in both if theirs[k] != ours[k]]


def load_parts(params: Any, parts: list[Part]) -> Any:
    """All trained `params` with what `parts` start from files in its place."""
    for part in parts:
        params = _replaced(params, part.path, part.params)
    return params


def _replaced(tree, path, new):
    if not path:
        return jax.tree.map(lambda old, x: jax.device_put(x, old.sharding), tree, new)
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], new)}


def describe_origins(params: Any, parts: list[Part]) -> list[str]:
    """One line for each part of the trained `params`: the file it starts from, or that it is random."""

    def origin(path):
        return next((p.origin for p in parts if path == p.path[:2] or path[: len(p.path)] == p.path), "random")

    paths = [(network, part) for network, tree in params.items() for part in tree if jax.tree.leaves(tree[part])]
    return [f"{'/'.join(path)}: {origin(path)}" for path in paths]


def start_tokenizer(config: ConfigDict) -> Path | None:
    """The vocabulary that came with the weights of what reads text, where there is one."""
    init = text_init(config)
    path = params_path(init).parent / TOKENIZER
    return path if init != "random" and path.is_dir() else None


def text_init(config: ConfigDict) -> str:
    """The file that what reads text starts from, or 'random'."""
    return config.student.text.init if config.student.init == "random" else config.student.init
