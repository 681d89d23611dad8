"""Pretrained towers of the student: what config.student.image.init and config.student.text.init name."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from smke_jax.convert.params_file import TOKENIZER, digests, fit, load_params, params_path, read_description
from smke_jax.errors import UserError
from smke_jax.models.teachers import Data2Vec2
from smke_jax.models.text import Bert
from smke_jax.passes.base import MEAN, STD

# The encoders that each tower can be made of, by the type in their descriptions.
FITTING = {"image": {"data2vec2": Data2Vec2}, "text": {"bert": Bert}}
# What a tower may have otherwise than the network it starts from: fewer layers, and how it is trained.
FREE = {"depth", "image_size", "pooler", "dropout", "token_drop", "init_std", "dtype", "parent", "name"}


class Tower(NamedTuple):
    """name: in the student's parameters; params: cut to fit; origin: what to say of them; digests: of their files."""

    name: str
    params: Any
    origin: str
    digests: dict[str, str]


def read_towers(student: Any, config: ConfigDict) -> list[Tower]:
    """The towers that config.student.{image,text}.init name, for `student`, the tree of its parameters (or shapes).

    Raises UserError where a file is missing or of another architecture, or has fewer layers than the tower.
    """
    return [
        _read(tower, student[f"{tower}_encoder"], config.student[tower])
        for tower in ("image", "text")
        if config.student[tower].init != "random"
    ]


def _read(tower: str, target: Any, config: ConfigDict) -> Tower:
    path = config.init
    model = read_description(path).get("model", {})
    module = FITTING[tower].get(model.get("type"))
    if module is None:
        raise UserError(
            f"config.student.{tower}.init: {path} holds a model of type {model.get('type')!r}; "
            f"this tower starts from {' or '.join(FITTING[tower])}"
        )
    defaults = {f.name: f.default for f in dataclasses.fields(module) if f.default is not dataclasses.MISSING}
    theirs = {k: v for k, v in {**defaults, **model}.items() if k in config and k not in FREE}
    wrong = [f"{k} is {v!r} there and {config[k]!r} here" for k, v in theirs.items() if config[k] != v]
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
    return Tower(f"{tower}_encoder", params, origin, digests(path))


def load_towers(params: Any, towers: list[Tower]) -> Any:
    """All trained `params` with the student's towers replaced by `towers`."""
    if not towers:
        return params
    put = {t.name: jax.tree.map(lambda old, new: jax.device_put(new, old.sharding), params["student"][t.name], t.params)
           for t in towers}  # fmt: skip
    return {**params, "student": {**params["student"], **put}}


def describe_origins(params: Any, towers: list[Tower]) -> list[str]:
    """One line for each part of the trained `params`: the file it starts from, or that it is random."""
    origins = {("student", t.name): t.origin for t in towers}
    parts = [(network, part) for network, tree in params.items() for part in tree if jax.tree.leaves(tree[part])]
    return [f"{'/'.join(part)}: {origins.get(part, 'random')}" for part in parts]


def tower_tokenizer(config: ConfigDict) -> Path | None:
    """The vocabulary that came with the text tower's weights, where there is one."""
    path = params_path(config.student.text.init).parent / TOKENIZER
    return path if config.student.text.init != "random" and path.is_dir() else None
