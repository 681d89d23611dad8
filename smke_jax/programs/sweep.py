"""`smke sweep`: the work behind smke_jax/flags/sweep.py, which says what it does."""

import argparse
import signal
import sys

from smke_jax.__main__ import run_program
from smke_jax.config_files import load_sweep, override_key
from smke_jax.errors import UserError
from smke_jax.flags.sweep import parser
from smke_jax.studies.compare.table import compare
from smke_jax.studies.jobs import report_outcome, run_jobs
from smke_jax.studies.sweep import plan_jobs, without_devices


def main(argv: list[str]) -> int:
    """Parses the command line, trains what is not finished and compares; returns the exit status."""
    arguments = parser().parse_args(argv)
    jobs = plan_jobs(arguments.config, _axes(arguments), arguments.overrides)
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


def _axes(arguments: argparse.Namespace) -> dict[str, tuple]:
    given = {override_key(argument) for argument in arguments.overrides}
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


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
