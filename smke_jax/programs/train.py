"""`smke train --config=configs/x.py --workdir=DIR [--config.a.b=value …]`"""

import difflib
import re
import sys

from absl import flags
from ml_collections import config_flags

from smke_jax.__main__ import run_program
from smke_jax.errors import UserError
from smke_jax.parallel.process import start_processes
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.record import flatten


def main(argv: list[str]) -> int:
    """Parses the flags and trains; returns the exit status."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, "config file", lock_config=True, flag_values=values)
    workdir = flags.DEFINE_string("workdir", None, "run directory; an existing one is continued", flag_values=values)
    parse(values, argv)
    if config.value is None or workdir.value is None:
        raise UserError("smke train needs --config=FILE and --workdir=DIR")
    start_processes()
    train_and_evaluate(config.value, workdir.value)
    return 0


def parse(values: flags.FlagValues, argv: list[str]) -> None:
    """Parses `argv`; raises UserError for anything unknown, with the nearest name that would be right."""
    try:
        rest = values(["smke", *argv])[1:]
    except FileNotFoundError as error:
        raise UserError(f"no config file {error.filename}: give --config=FILE, such as configs/flickr8k.py") from None
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"unknown flag --{error.flagname}{_nearest(error.flagname, list(values))}") from None
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        raise UserError(_explain(values, argv, error)) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags look like --config.batch_size=256")


def _explain(values, argv, error) -> str:
    """One line for what went wrong with --config.…: the unknown key with its nearest neighbour, or the bad value."""
    path = next((m[1] for a in argv if (m := re.match(r"--?config=([^:]*)", a))), None)
    if path is not None:
        fresh = flags.FlagValues()
        config = config_flags.DEFINE_config_file("config", None, "", flag_values=fresh)
        try:
            fresh(["smke", *(a for a in argv if re.match(r"--?config=", a))])
        except Exception as broken:  # the file itself does not run
            return f"{path} cannot be read as a config: {broken}"
        known = flatten(config.value)
        for argument in argv:
            key = argument.lstrip("-").partition("=")[0]
            if key.startswith("config.") and key not in known:
                return f"unknown config key {key}{_nearest(key, list(known))}"
    return str(error).splitlines()[0]


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f": did you mean {close[0]}?" if close else ""


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
