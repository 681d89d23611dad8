"""What a config needs: its data and its weights, by the checks that a training makes before its first step."""

import contextlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from smke_jax.errors import UserError
from smke_jax.studies.doctor.findings import Finding
from smke_jax.tasks.base import BatchPlan
from smke_jax.training.opening import open_run


def check_config(stages: Mapping[str, ConfigDict]) -> list[Finding]:
    """Opens the first of `stages` as `smke train` does, in a folder that is removed, and reads a batch of it.

    Later stages begin with what the first one makes, so that they cannot be opened before.
    """
    (name, config), *later = stages.items()
    what = f"config {name}".strip()
    with tempfile.TemporaryDirectory(prefix="smke_doctor.") as folder:
        try:
            plan = open_run(config, Path(folder))
            task = plan.experiment.task
            networks = ", ".join(f"{network} from {_where(start)}" for network, start in plan.starts.items())
            said = f"{task.length():,} rows an epoch, {plan.total_steps:,} steps"
            found = [Finding(what, True, f"{said}; {networks}" if networks else said)]
            wanted = BatchPlan(plan.batch_size, plan.seed, (0, 1), frozenset(plan.experiment.batch))
            with contextlib.closing(task.batches(wanted)) as batches:
                start = time.perf_counter()
                next(batches)
                seconds = time.perf_counter() - start
            damaged = getattr(batches, "damaged", 0)
        except UserError as error:
            return [Finding(what, False, str(error))]
    said = f"the first batch of {plan.batch_size} was read in {seconds:.1f} s"
    if damaged:
        said = f"{damaged} rows of {said.removeprefix('the ')} cannot be read and were replaced: prepare the data anew"
    found.append(Finding("data", not damaged, said))
    if later:
        names = ", ".join(stage for stage, _ in later)
        found.append(Finding("later stages", True, f"not looked at, they begin with exports of earlier ones: {names}"))
    return found


def _where(start) -> str:
    return "; ".join(dict.fromkeys(start.origins.values())) or "a file"
