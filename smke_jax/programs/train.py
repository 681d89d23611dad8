"""`smke train`: the work behind smke_jax/flags/train.py, which says what it does."""

import shlex
import sys

import jax

from smke_jax.__main__ import run_program
from smke_jax.config_files import load_stages, override_stages
from smke_jax.flags.train import parser
from smke_jax.parallel.process import leaving_on_error, start_processes
from smke_jax.training.record import read_config
from smke_jax.training.stages import EXPORT, Finished, train_stages


def main(argv: list[str]) -> int:
    """Parses the flags and trains; returns the exit status."""
    arguments = parser().parse_args(argv)
    stages = override_stages(load_stages(arguments.config), arguments.overrides)
    start_processes(arguments.coordinator, arguments.num_processes, arguments.process_id)
    with leaving_on_error():
        finished = train_stages(stages, arguments.workdir)
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
