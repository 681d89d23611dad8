"""What the report of a run costs its training.

    python -m smke_jax.studies.benchmarks.report_cost --config=FILE [--rounds=3] [--config.a.b=value …]

The same training is run in turns with its report and without.  Evaluation should come often: `smke train` makes a
report at evaluations, and leaves some of them without one where reports would take more than a twentieth of the time.
"""

import argparse
import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from smke_jax.__main__ import run_program
from smke_jax.errors import UserError
from smke_jax.flags import positive, split_overrides
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import alone, say, spread
from smke_jax.training.report import report_run


class Cost(NamedTuple):
    """Seconds on the clock on the wall, and of all processors."""

    wall: float
    work: float


def train(config: str, overrides: Sequence[str], workdir: Path, *, report: bool) -> Cost:
    """Of a whole `smke train`.  Raises UserError where it fails."""
    command = [sys.executable, "-m", "smke_jax", "train", f"--config={config}", f"--workdir={workdir}", *overrides]
    before, start = _children(), time.perf_counter()
    done = subprocess.run([*command, f"--config.log.report={report}"], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"smke train failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return Cost(time.perf_counter() - start, _children() - before)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def reports(workdir: Path, count: int) -> list[Cost]:
    """Of each of `count` reports of a run in one process: the first imports what draws the curves."""
    found = []
    for _ in range(count):
        start, work = time.perf_counter(), time.process_time()
        report_run(workdir)
        found.append(Cost(time.perf_counter() - start, time.process_time() - work))
    return found


BODY = """\
{evaluations} evaluations in {steps} steps of `{config}`; {rounds} rounds, medians, lowest and highest in brackets; the
ratio is of the same round. The work of the processor counts nothing of programs that run beside this one.

| what | seconds on the wall | seconds of the processor |
|---|---|---|
| `smke train` with its report | {on} | {on_work} |
| `smke train --config.log.report=False` | {off} | {off_work} |
| ratio | {ratio} | {ratio_work} |
| the first report of a process, with imports | {first.wall:.2f} | {first.work:.2f} |
| each further report | {later} | {later_work} |
"""


def main(argv: list[str]) -> int:
    """Measures and writes the table."""
    own, overrides = split_overrides(argv)
    arguments = _parser().parse_args(own)
    costs: dict[bool, list[Cost]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as temporary:
        train(arguments.config, overrides, Path(temporary, "compiles"), report=True)
        for number in range(arguments.rounds):
            for report, found in costs.items():
                workdir = Path(temporary, f"{number}_{report}")
                found.append(train(arguments.config, overrides, workdir, report=report))
            say(f"  round {number + 1} of {arguments.rounds}")
        workdir = Path(temporary, "0_True")
        evaluations = len(list((workdir / "evals").glob("*/")))
        steps = json.loads((workdir / "run.json").read_text(encoding="utf-8"))["config"]["config.total_steps"]
        first, *later = alone(reports, workdir, 1 + arguments.rounds)
    pairs = list(zip(costs[True], costs[False], strict=True))
    body = BODY.format(
        evaluations=evaluations, steps=steps, config=arguments.config, rounds=arguments.rounds, first=first,
        on=spread([x.wall for x in costs[True]]), on_work=spread([x.work for x in costs[True]]),
        off=spread([x.wall for x in costs[False]]), off_work=spread([x.work for x in costs[False]]),
        ratio=spread([x.wall / y.wall for x, y in pairs]), ratio_work=spread([x.work / y.work for x, y in pairs]),
        later=spread([x.wall for x in later]), later_work=spread([x.work for x in later]),
    )  # fmt: skip
    command = f"python -m smke_jax.studies.benchmarks.report_cost --rounds={arguments.rounds} "
    record.write(
        arguments.out, "The report of a run", command + shlex.join([f"--config={arguments.config}", *overrides]), body
    )
    say(f"{arguments.out} is written: a report takes {spread([x.wall for x in later])} s")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("report_cost", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE[:FORM]", help="what is trained")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="trainings with and without")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
