"""How many steps fill a given time: measured in a short run, and kept, so that a resumed run anneals as planned."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from smke_jax import atomic
from smke_jax.config import base
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json
from smke_jax.studies.job import Job
from smke_jax.studies.jobs import FINISHED, run_jobs
from smke_jax.studies.runs import read_runs
from smke_jax.training.record import differences, flatten

TIMED_STEPS = 10  # after the first, which compiles


class Calibration(NamedTuple):
    """What was measured of a recipe, and what follows."""

    minutes: float
    steps_per_second: float
    total_steps: int
    config: dict  # the one that was timed, flattened, without what differs between the runs of one recipe


class Calibrations:
    """`calibration.json` in the directory of the runs: the Calibration of each recipe."""

    def __init__(self, out: Path):
        self.path, self.scratch = out / "calibration.json", out / "calibrating"
        self._known: dict[str, Calibration] = {}
        if self.path.exists():
            try:
                read = parse_json(self.path.read_text(encoding="utf-8"))
                self._known = {name: Calibration(**said) for name, said in read.items()}
            except (ValueError, TypeError, AttributeError):
                raise UserError(f"{self.path} is damaged: remove it where no run beside it has begun") from None

    def total_steps(self, name: str, jobs: Sequence[Job], minutes: float) -> int | None:
        """The steps of the runs of recipe `name` as found earlier, or None where it is still to be measured.

        Raises UserError for runs that have begun with another config or for another time.
        """
        known = self._known.get(name)
        different = self._different(known, jobs[0], minutes)
        begun = [self.path.parent / job.name for job in jobs if job.is_begun(self.path.parent)]
        if different and begun:
            raise UserError(f"{begun[0]} was begun otherwise ({different}): give those values, or another --out")
        return None if different else known.total_steps

    @staticmethod
    def _different(known: Calibration | None, job: Job, minutes: float) -> str:
        if known is None:
            return "its steps were not found by --minutes"
        if known.minutes != minutes:
            return f"--minutes: {known.minutes:g} there, {minutes:g} now"
        return differences({**_without_run(flatten(base())), **known.config}, _without_run(job.fields))

    def measure(self, name: str, job: Job, minutes: float) -> tuple[dict, int]:
        """Times `job` in a scratch run and keeps the result; returns what `run_jobs` says of that run.

        Of several stages the last is timed.  The stages before it take one step, but for those that other runs share.
        """
        flags = [("total_steps", TIMED_STEPS + 1), ("log.every", TIMED_STEPS + 1), ("epochs", 0.0)]
        for stage in job.stages[:-1]:
            if "/" not in stage:
                flags += [(f"{stage}.total_steps", 1), (f"{stage}.epochs", 0.0)]
        short = job._replace(overrides=(*job.overrides, *(f"--config.{key}={value}" for key, value in flags)))
        shutil.rmtree(self.scratch, ignore_errors=True)  # left over from one that was interrupted, or of another config
        records, stopped_by = run_jobs([short], self.scratch, skipped={}, environment={})
        record = records[job.name]
        if record["state"] == FINISHED:
            ((run,), _) = read_runs([short.directory(self.scratch)])
            speed = run.examples_per_second / run.batch_size
            steps = max(1, round(60 * minutes * speed))
            self._known[name] = Calibration(minutes, speed, steps, _without_run(job.fields))
            text = json.dumps({name: known._asdict() for name, known in self._known.items()}, indent=1)
            atomic.write_text(self.path, text + "\n")
            shutil.rmtree(self.scratch)
        return record, stopped_by


def _without_run(fields: dict) -> dict:
    """Of a flattened config, what the runs of one recipe have in common."""
    own = ("config.seed", "config.total_steps", "config.epochs")
    return {key: value for key, value in fields.items() if key not in own}
