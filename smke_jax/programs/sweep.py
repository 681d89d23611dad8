"""`smke sweep`: a config over a grid of values, one run directory for each combination.

    smke sweep --config=configs/scaling.py --out=runs/scaling
    smke sweep --config=FILE --out=DIR --axis config.batch_size=256,512 --axis config.num_devices=1,2 --seeds=1,2,3

A config may name its own grid in `get_sweep()`; --axis replaces or adds to it, and any --config.key=value holds for
all runs. The same command leaves finished runs alone and continues interrupted ones.
"""

import argparse
import re
import signal
import sys
from pathlib import Path

from smke_jax.__main__ import program_parser, run_program
from smke_jax.config_files import load_sweep, override_key, split_overrides
from smke_jax.errors import UserError
from smke_jax.studies.compare.table import compare
from smke_jax.studies.jobs import report_outcome, run_jobs
from smke_jax.studies.sweep import plan_jobs, without_devices


def main(argv: list[str]) -> int:
    """Parses the command line, trains what is not finished and compares; returns the exit status."""
    argv, overrides = split_overrides(argv)
    arguments = _parser().parse_args(argv)
    jobs = plan_jobs(arguments.config, _axes(arguments, overrides), overrides)
    environment = _simulated(arguments.simulate_devices)
    skipped = without_devices(jobs, environment)
    if arguments.dry_run:
        for job in jobs:
            print(job.describe(arguments.out, f"skipped, {skipped[job.name]}" if job.name in skipped else ""))
        return 0
    records, stopped_by = run_jobs(jobs, arguments.out, skipped=skipped, environment=environment)
    if stopped_by:
        print(f"stopped by {signal.Signals(stopped_by).name}; the same command continues", file=sys.stderr)
        return 128 + stopped_by
    if any(job.is_begun(arguments.out) for job in jobs):
        print(compare([arguments.out], arguments.out))
    return report_outcome(records)


def _axes(arguments, overrides: list[str]) -> dict[str, tuple]:
    given = {override_key(argument) for argument in overrides}
    axes = {key: values for key, values in load_sweep(arguments.config).items() if key not in given}
    axes |= dict(arguments.axis)
    if arguments.seeds:
        axes["config.seed"] = arguments.seeds
    if not axes:
        raise UserError("nothing to vary: give --axis config.batch_size=256,512, or a config with get_sweep()")
    for key, values in axes.items():
        if key in given:
            raise UserError(f"{key} is both an axis and a single value: give one of them")
        if not values:
            raise UserError(f"the axis {key} has no values: give --axis {key}=A,B")
    return axes


def _simulated(devices: int) -> dict[str, str]:
    return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)} if devices else {}


def _parser() -> argparse.ArgumentParser:
    parser = program_parser("sweep", __doc__)
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="as of `smke train`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the run directories")
    parser.add_argument("--axis", type=_axis, action="append", default=[], metavar="config.KEY=A,B,…")
    parser.add_argument("--seeds", type=_values, metavar="A,B,…", help="short for --axis config.seed=A,B,…")
    parser.add_argument("--dry_run", action="store_true", help="print the runs and their commands alone")
    parser.add_argument(
        "--simulate_devices", type=int, default=0, metavar="N", help="train on N simulated devices on the CPU"
    )
    return parser


def _axis(text: str) -> tuple[str, tuple[str, ...]]:
    key, _, values = text.partition("=")
    return key, _values(values)


def _values(text: str) -> tuple[str, ...]:
    """Separated at the commas outside brackets, each once."""
    return tuple(dict.fromkeys(re.findall(r"(?:\([^()]*\)|\[[^\[\]]*\]|[^,])+", text)))


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
