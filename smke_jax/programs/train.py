"""`smke train --config=configs/x.py --workdir=DIR [--config.a.b=value …]`

A config of several stages is trained in order, each stage in DIR/STAGE; `--config.STAGE.a.b=value` changes one of them,
and without the name of a stage the last one.  The same command continues a run.  Ctrl-C saves and stops.

Every config comes in a form `FILE:smoke`, of two steps on drawn scenes, to see it work in less than two minutes.
"""

import shlex
import sys

import jax
from absl import flags

from smke_jax.__main__ import run_program
from smke_jax.config_files import load_stages, override_stages, parse_flags, split_overrides
from smke_jax.errors import UserError
from smke_jax.parallel.process import leaving_on_error, start_processes
from smke_jax.training.record import read_config
from smke_jax.training.stages import EXPORT, Finished, train_stages


def main(argv: list[str]) -> int:
    """Parses the flags and trains; returns the exit status."""
    values = flags.FlagValues()
    config_file = flags.DEFINE_string("config", None, "config file", flag_values=values)
    workdir = flags.DEFINE_string("workdir", None, "run directory; an existing one is continued", flag_values=values)
    flags.DEFINE_string("coordinator", None, "host:port of process 0, else SMKE_COORDINATOR", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "how many processes, else SMKE_NUM_PROCESSES", flag_values=values)
    flags.DEFINE_integer("process_id", None, "this one's number, else SMKE_PROCESS_ID", flag_values=values)
    argv, overrides = split_overrides(argv)
    if {"-h", "--help"} & set(argv):
        own, _, _ = values.get_help().partition("absl.flags:")
        print(f"{__doc__}\n{own.strip()}")
        return 0
    parse_flags(values, argv)
    if config_file.value is None or workdir.value is None:
        raise UserError("smke train needs --config=FILE and --workdir=DIR")
    stages = override_stages(load_stages(config_file.value), overrides)
    start_processes(values.coordinator, values.num_processes, values.process_id)
    with leaving_on_error():
        finished = train_stages(stages, workdir.value)
    if jax.process_index() == 0:
        print(_what_next(finished))
    return 0


def _what_next(finished: Finished) -> str:
    """Where the run lies, and the commands that go on from it."""
    folder, stage = finished.workdir, f"stage {finished.stage}, " if finished.stage else ""
    if not finished.whole:
        return f"{stage}step {finished.outcome.step}: stopped and saved in {folder}; the same command continues"
    lines, given = [f"the run lies in {folder}; next:"], shlex.quote(str(folder))
    if read_config(folder).evaluators:
        lines.append(f"  smke evaluate --workdir={given}")
    return "\n".join([*lines, f"  smke export --workdir={given} --out={shlex.quote(str(folder / EXPORT))}"])


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
