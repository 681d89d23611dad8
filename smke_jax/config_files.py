"""Config files: Python modules with `get_config`, and what a command line changes of them."""

import contextlib
import functools
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import smke_jax
from smke_jax.errors import UserError, nearest
from smke_jax.rungs import Rung, check_rungs
from smke_jax.training.record import flatten


def load_config(location: str) -> ConfigDict:
    """What `get_config` of FILE, or of FILE:VARIANT with the variant, returns."""
    return _run(location, lambda module, variant: module.get_config(*variant))


def load_stages(location: str) -> dict[str, ConfigDict]:
    """{stage: config} in the order in which they are trained, of `get_stages`; {'': config} where there is none."""

    def stages(module, variant):
        if not hasattr(module, "get_stages"):
            return {"": module.get_config(*variant)}
        found = module.get_stages(*variant)
        return found if len(found) > 1 else {"": next(iter(found.values()))}

    return _run(location, stages)


def load_sweep(location: str) -> dict[str, tuple]:
    """{'config.key': its values} that `get_sweep` of FILE or FILE:VARIANT returns; empty where there is none."""
    grid = _run(location, lambda module, variant: getattr(module, "get_sweep", lambda *_: {})(*variant))
    if not isinstance(grid, dict) or not all(isinstance(values, tuple | list) for values in grid.values()):
        raise UserError(f"get_sweep() of {location} has to return {{'config.key': (value, …), …}}")
    return {key: tuple(values) for key, values in grid.items()}


def load_rungs(location: str) -> tuple[Rung, ...]:
    """The constant `RUNGS` of a config FILE; empty where it has none."""
    return _run(location, lambda module, _: check_rungs(getattr(module, "RUNGS", ()), Path(location)))


def _run(location: str, use: Callable[[ModuleType, list[str]], Any]) -> Any:
    """`use(module of the config file, [VARIANT] or [])`.  A config is code: what it raises keeps its traceback."""
    name, _, variant = location.partition(":")
    path = Path(name)
    if not path.is_file():
        path = shipped_configs().get(re.sub(r"^configs/|\.py$", "", name), path)
    if not path.is_file():
        raise UserError(f"no config file {path}: give --config=FILE, or the name of one that came along: "
                        f"{', '.join(sorted(shipped_configs()))}")  # fmt: skip
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None:
        raise UserError(f"{path} cannot be read as a config: its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config: a config file needs one")
    return use(module, [variant] if variant else [])


@functools.cache
def shipped_configs() -> dict[str, Path]:
    """{name: file} of the configs that came with the package, in its repository or in its wheel."""
    root = repository()
    files = _installed_configs() if root is None else (root / "configs").glob("*.py")
    return {path.stem: path for path in files}


def repository() -> Path | None:
    """The folder of the repository that the package runs from; None where it is installed without one."""
    root = Path(smke_jax.__file__).resolve().parents[1]
    return root if (root / "setup.cfg").is_file() else None


def _installed_configs() -> Iterator[Path]:
    with contextlib.suppress(metadata.PackageNotFoundError):
        package = metadata.distribution("smke_jax")
        for file in package.files or ():
            if file.suffix == ".py" and file.parent.parts[-2:] == ("smke_jax", "configs"):
                yield Path(package.locate_file(file)).resolve()


def override_key(argument: str) -> str:
    """'config.a.b' of '--config.a.b=value'."""
    return re.sub("^--?(no)?", "", argument).partition("=")[0]


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """`config` changed by `--config.a.b=value` arguments; UserError for keys and values that do not fit.

    A list of names needs no brackets: --config.task.data=data/coco,data/cc3m
    """
    known = flatten(config.copy_and_resolve_references())
    given = []
    for argument in arguments:
        key = override_key(argument)
        if key not in known:
            raise UserError(f"unknown config key {key}{nearest(key, list(known))}")
        given.append(_as_tuple(argument) if isinstance(known[key], list) else argument)
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["smke", *given])
        values(["smke", *given])
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        raise UserError(str(error).splitlines()[0]) from error
    return holder.value


def override_stages(stages: Mapping[str, ConfigDict], arguments: list[str]) -> dict[str, ConfigDict]:
    """The configs of `stages` changed by `--config.STAGE.a.b=value`, the last one also by `--config.a.b=value`.

    Raises UserError for keys and values that do not fit.
    """
    *_, last = stages
    own: dict[str, list[str]] = {stage: [] for stage in stages}
    known = [key for stage, config in stages.items() for key in _keys(config, f"config.{stage}" if stage else "config")]
    known += _keys(stages[last], "config")
    for argument in arguments:
        key = override_key(argument)
        if key not in known:
            raise UserError(f"unknown config key {key}{nearest(key, known)}")
        stage = next((stage for stage in stages if stage and key.startswith(f"config.{stage}.")), last)
        own[stage].append(argument.replace(f"config.{stage}.", "config.", 1) if stage else argument)
    return {stage: override(config, own[stage]) for stage, config in stages.items()}


def _keys(config: ConfigDict, prefix: str) -> list[str]:
    return list(flatten(config.copy_and_resolve_references(), prefix))


def _as_tuple(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if not value or value[0] in "([" or re.fullmatch(r"[-+.\d,e ]+", value):
        return argument
    return f"{name}{equals}({', '.join(repr(x) for x in value.split(','))},)"
