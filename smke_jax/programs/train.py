"""`smke train --config=configs/x.py --workdir=DIR [--config.a.b=value …]`"""

import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from smke_jax.__main__ import run_program
from smke_jax.errors import UserError
from smke_jax.parallel.process import leaving_on_error, start_processes
from smke_jax.reporting.rungs import Rung, check_rungs
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.record import flatten


def main(argv: list[str]) -> int:
    """Parses the flags and trains; returns the exit status."""
    values = flags.FlagValues()
    config_file = flags.DEFINE_string("config", None, "config file", flag_values=values)
    workdir = flags.DEFINE_string("workdir", None, "run directory; an existing one is continued", flag_values=values)
    flags.DEFINE_string("coordinator", None, "host:port of process 0, else SMKE_COORDINATOR", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "how many processes, else SMKE_NUM_PROCESSES", flag_values=values)
    flags.DEFINE_integer("process_id", None, "this one's number, else SMKE_PROCESS_ID", flag_values=values)
    argv, overrides = split_overrides(argv)
    _parse(values, argv)
    if config_file.value is None or workdir.value is None:
        raise UserError("smke train needs --config=FILE and --workdir=DIR")
    config = override(load_config(config_file.value), overrides)
    start_processes(values.coordinator, values.num_processes, values.process_id)
    with leaving_on_error():
        train_and_evaluate(config, workdir.value)
    return 0


def split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """(the program's own arguments, the `--config.a.b=value` among them)."""
    overrides = [argument for argument in argv if re.match(r"--?(no)?config\.", argument)]
    return [argument for argument in argv if argument not in overrides], overrides


def override_key(argument: str) -> str:
    """'config.a.b' of '--config.a.b=value'."""
    return re.sub("^--?(no)?", "", argument).partition("=")[0]


def load_config(location: str) -> ConfigDict:
    """What `get_config` of FILE, or of FILE:VARIANT with the variant, returns; UserError where it does not run."""
    return _run(location, lambda module, variant: module.get_config(*variant).lock())


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
    """`use(module of the config file, [VARIANT] or [])`, with whatever goes wrong in it as a UserError."""
    name, _, variant = location.partition(":")
    path = Path(name)
    if not path.is_file():
        raise UserError(f"no config file {path}: give --config=FILE, such as configs/flickr8k.py")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None:
        raise UserError(f"{path} cannot be read as a config: its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return use(module, [variant] if variant else [])
    except UserError:
        raise
    except Exception as error:  # a config is code, and may fail in any way
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" (line {lines[-1]})" if lines else ""
        what = " ".join(str(error).split())[:300]
        raise UserError(f"{path} cannot be read as a config{where}: {type(error).__name__}: {what}") from None


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """`config` changed by `--config.a.b=value` arguments; UserError for keys and values that do not fit."""
    known = flatten(config)
    for argument in arguments:
        key = override_key(argument)
        if key not in known:
            raise UserError(f"unknown config key {key}{nearest(key, list(known))}")
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["smke", *arguments])
        _parse(values, arguments)
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        raise UserError(str(error).splitlines()[0]) from None
    return holder.value


def _parse(values: flags.FlagValues, argv: list[str]) -> None:
    """Parses `argv`; raises UserError for anything unknown, with the nearest name that would be right."""
    try:
        rest = values(["smke", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"unknown flag --{error.flagname}{nearest(error.flagname, list(values))}") from None
    except (TypeError, ValueError, flags.Error) as error:
        raise UserError(str(error).splitlines()[0]) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags look like --config.batch_size=256")


def nearest(name: str, known: list[str]) -> str:
    """': did you mean X?' for the name among `known` that `name` is most like, or nothing."""
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f": did you mean {close[0]}?" if close else ""


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
