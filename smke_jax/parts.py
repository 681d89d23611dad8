"""The parts that configs are put together from, each with all the fields of its builder.

    from smke_jax.parts import base, bert, data2vec2, frozen, itc, pairs, transformer, two_towers

    c = base()
    c.task = pairs(data=("data/coco",))
    c.networks.student = two_towers(image=data2vec2(depth=6), text=bert(depth=6), shared=transformer())

`two_towers(…)` here is a `ConfigDict` with the key `type` and a key for every keyword of the builder of that name, at
its default where none is given.  A field that the builder does not have is refused.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict, FieldReference, config_dict

from smke_jax.assets import ASSETS
from smke_jax.config import base
from smke_jax.errors import UserError, nearest
from smke_jax.evaluators import EVALUATORS
from smke_jax.facts import Described, FromTask, NamesFromTask, NumbersFromTask
from smke_jax.models import MODELS
from smke_jax.models.fields import defaults_of
from smke_jax.networks import NETWORKS
from smke_jax.objectives import TERMS
from smke_jax.selections import SELECTIONS
from smke_jax.tasks import TASKS

__all__ = ["ROOMS", "base", "departures", "filled", "part"]

ROOMS: dict[str, Mapping[str, Callable]] = {
    "task": TASKS,
    "networks": NETWORKS,
    "selections": SELECTIONS,
    "terms": TERMS,
    "assets": ASSETS,
    "evaluators": EVALUATORS,
    "models": MODELS,
}
# What the run fills in, not the config: keywords of tasks, and fields of modules, of which their network sets the last
# three for all of its modules.  Other builders mark such keywords by a type of smke_jax.facts.
OF_TASKS = {"keep", "known"}
OF_MODULES = {"parent", "name", "vocab_size", "dtype", "residual_dtype", "remat"}
# Fields that had another name when runs were recorded: {that name: (the name now, {value then: value now})}.
RENAMED = {"mask_same_image": ("same_image", {False: "negative", True: "masked"})}


def part(type: str, /, **fields: Any) -> ConfigDict:
    """The config of the builder called `type` with these fields, the others at their defaults.

    Raises UserError for an unknown builder or field, and for one that has to be given and is not.
    """
    room, builder = find(type)
    known = defaults(room, builder)
    for name in fields:
        if name not in known:
            raise UserError(f"{type} has no field {name!r}{nearest(name, list(known))}")
    missing = [name for name, default in known.items() if default is inspect.Parameter.empty and name not in fields]
    if missing:
        raise UserError(f"{type} needs {', '.join(missing)}: give it")
    config = ConfigDict({"type": type})
    for name, default in known.items():
        config[name] = default if name not in fields else _plain(fields[name], default)
    return config.lock()


# Values at which a run is what it was before there was such a field, where the default of the field is another.
BEFORE = {"split_by_length": False}


def filled(config: ConfigDict) -> ConfigDict:
    """A copy of `config`, which an earlier version recorded, with the fields that have been added since.

    They get their defaults, or their value in BEFORE: the run stays what it was before there was such a field.  A field
    whose name has changed gets its name of today, and the value that means the same.
    """
    config, whole = ConfigDict(config.to_dict()), base()
    for key, value in whole.items():
        if key not in config:
            config[key] = BEFORE.get(key, value)
        elif key == "task":
            _fill(config.task, "")
        elif key in ROOMS:
            for name, given in config[key].items():
                _fill(given, name)
        elif isinstance(value, ConfigDict):
            config[key].update({name: x for name, x in value.items() if name not in config[key]})
    return config


def _fill(given: ConfigDict, name: str) -> None:
    try:
        room, builder = find(given.get("type", name))
    except UserError:  # the part is gone: what builds it says so, with its place in the config
        return
    fields = defaults(room, builder)
    for then, (now, values) in RENAMED.items():
        if then in given and now in fields:
            given[now] = values[given[then]]
            del given[then]
    for field, default in fields.items():
        if field not in given and default is not inspect.Parameter.empty:
            given[field] = default
        elif isinstance(given.get(field), ConfigDict) and "type" in given[field]:
            _fill(given[field], field)


def at_defaults(given: ConfigDict, name: str) -> ConfigDict:
    """The part `given` with its fields at their defaults, also in the parts within it; those without one are left out.

    name: what it is called, which is its type where it names none
    """
    within = {field: x for field, x in given.items() if isinstance(x, ConfigDict) and "type" in x}
    bare = ConfigDict({field: at_defaults(x, field) for field, x in within.items()})
    bare.type = given.get("type", name)
    _fill(bare, name)
    return bare


def departures(config: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """{'config.a.b': (value, default)} where `config` departs from `base()` and from the defaults of its parts.

    A field without a default is in it, with the default None; the types of parts are not.
    """
    found, whole = {}, base()
    for key, value in config.items():
        if key == "task":
            found |= _departing(value, "", "config.task")
        elif key in ROOMS:
            for name, given in value.items():
                found |= _departing(given, name, f"config.{key}.{name}")
        elif isinstance(value, ConfigDict):
            found |= {f"config.{key}.{k}": (x, whole[key][k]) for k, x in value.items() if x != whole[key][k]}
        elif value != whole[key]:
            found[f"config.{key}"] = value, whole[key]
    return found


def _departing(given: ConfigDict, name: str, where: str) -> dict[str, tuple[Any, Any]]:
    try:
        fields = defaults(*find(given.get("type", name)))
    except UserError:  # an earlier version had such a part
        fields = {}
    found = {}
    for key, value in given.items():
        default = fields.get(key)
        default = None if default is inspect.Parameter.empty or isinstance(default, FieldReference) else default
        if isinstance(value, ConfigDict) and "type" in value:
            found |= _departing(value, key, f"{where}.{key}")
        elif key != "type" and value != default:
            found[f"{where}.{key}"] = value, default
    return found


def find(type: str) -> tuple[str, Callable]:
    """(room, builder) of that name; raises UserError where there is none."""
    for room, table in ROOMS.items():
        if type in table:
            return room, table[type]
    everything = [name for table in ROOMS.values() for name in table]
    raise UserError(f"there is no part {type!r}{nearest(type, everything)}; known are {', '.join(sorted(everything))}")


def defaults(room: str, builder: Callable) -> dict[str, Any]:
    """{field: default} of a builder; a field without one is `inspect.Parameter.empty`."""
    hints = typing.get_type_hints(builder, include_extras=True)
    hidden = {name for name, hint in hints.items() if hint in (FromTask, NamesFromTask, NumbersFromTask, Described)}
    if isinstance(builder, type) and issubclass(builder, nn.Module):
        given = defaults_of(builder).items()
        found = {name: inspect.Parameter.empty if x is dataclasses.MISSING else x for name, x in given}
        hidden |= OF_MODULES
    else:
        found = {name: x.default for name, x in inspect.signature(builder).parameters.items()}
    if room == "task":
        hidden |= OF_TASKS
    found = {k: _placeholder(x, hints.get(k)) for k, x in found.items() if k not in hidden}
    if room == "terms":
        found |= {"weight": 1.0, "final_weight": config_dict.placeholder(float)}
    return found


def _placeholder(default: Any, hint: Any) -> Any:
    """What stands for None in a ConfigDict, so that a flag can give it a value of its type."""
    if default is not None:
        return default
    kinds = [x for x in typing.get_args(hint) if x in (bool, int, float, str)] if isinstance(
        hint, types.UnionType
    ) else []  # fmt: skip
    return config_dict.placeholder(kinds[0]) if kinds else None


def _plain(value: Any, default: Any) -> Any:
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return tuple(value) if isinstance(value, list) else value


def __getattr__(name: str) -> Callable[..., ConfigDict]:
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        find(name)
    except UserError as error:
        raise AttributeError(str(error)) from None
    return functools.partial(part, name)
