"""What a run directory says of its run, in one record; what cannot be read becomes a line instead of an error."""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smke_jax.config import base
from smke_jax.errors import UserError
from smke_jax.reporting.evaluations import Evaluation, newest_evaluations
from smke_jax.reporting.metrics_log import read_metrics, series, training_seconds
from smke_jax.reporting.run_file import FILE, read_run
from smke_jax.studies.jobs import FAILED, SKIPPED, Ledger
from smke_jax.training.record import flatten


@dataclass(frozen=True)
class Run:
    """One run; None where it has not said it yet.

    config:              {'config.a.b': value}, every field of the run's config and of today's loop
    devices, device:     how many it used, and of what kind
    step:                last one logged
    evaluations:         {evaluator: its newest figures}
    examples_per_second: median of the logged ones
    data_wait:           share of the training time spent waiting for data
    hours:               of the training steps alone, without start-up, evaluation and saving
    loss:                last one logged
    commit:              of the code that started it
    memory:              peak in GiB, of the device, or of the process where the device does not say
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    identity: Mapping[str, str]
    devices: int
    device: str
    step: int
    evaluations: Mapping[str, Evaluation]
    examples_per_second: float | None
    data_wait: float | None
    hours: float | None
    loss: float | None
    memory: float | None
    commit: str | None

    @property
    def batch_size(self) -> int:
        return self.config["config.batch_size"]

    @property
    def total_steps(self) -> int:
        return self.config["config.total_steps"]

    @property
    def is_finished(self) -> bool:
        return self.step >= self.total_steps

    @property
    def retrieval(self) -> Evaluation | None:
        """The first of its evaluations that has recalls."""
        return next((x for x in self.evaluations.values() if x.has_recalls), None)

    def recall(self, direction: str, key: str) -> float | None:
        """Of 'image_to_text' or 'text_to_image' at 'r1', 'r5' or 'r10', in percent."""
        return self.retrieval and self.retrieval.record[direction][key]

    def interval(self, direction: str, key: str) -> tuple[float, float] | None:
        """The 95 % interval of `recall`."""
        intervals = self.retrieval and self.retrieval.record["ci95"]
        return tuple(intervals[direction][key]) if intervals else None


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs at `paths`, run directories or directories of them, and one line for everything that is amiss."""
    found: dict[Path, tuple[Path, str]] = {}  # {resolved: (path, name)}
    problems: list[str] = []
    for path in paths:
        inner = _find_runs(path)
        if not inner:
            problems.append(f"{path}: neither a run directory nor a directory of them, it has no run.json")
        if not (path / "run.json").exists():
            problems += _failed_jobs(path)
        for directory, name in inner:
            found.setdefault(directory.resolve(), (directory, name))
    names = [name for _, name in found.values()]
    runs = []
    for path, name in found.values():
        try:
            runs.append(_read_run(path, name if names.count(name) == 1 else str(path), problems))
        except UserError as error:
            problems.append(str(error))
    return runs, problems


def _find_runs(path: Path) -> list[tuple[Path, str]]:
    """(directory, name) of the run at `path`, or of those in it; of several stages the last, where that is known."""
    if (path / "run.json").exists():
        return [(path, path.resolve().name)]
    found, jobs = [], _records(path)
    for child in sorted((x for x in path.glob("*") if x.is_dir()), key=_natural):
        stages = jobs.get(child.name, {}).get("stages")
        if (child / "run.json").exists():
            found.append((child, child.name))
        elif stages:
            last = child / stages[-1]
            found += [(last, child.name)] if (last / "run.json").exists() else []
        elif not jobs:
            found += [(x.parent, f"{child.name}/{x.parent.name}") for x in sorted(child.glob("*/run.json"))]
    return found


def _records(folder: Path) -> Mapping[str, Mapping]:
    """What the jobs of `folder` say of themselves, where there are any."""
    try:
        return {name: said for name, said in Ledger(folder).records.items() if isinstance(said, dict)}
    except UserError:
        return {}


def _read_run(path: Path, name: str, problems: list[str]) -> Run:
    said = read_run(path)
    try:
        config = {**flatten(base()), **said["config"]}
        devices = config["config.num_devices"] or len(said["devices"])
        identity, device = dict(said["identity"]), said["devices"][0]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path / FILE} is not the record of a run: give directories of `smke train`") from None
    try:
        rows = read_metrics(path / "metrics.jsonl")
        if rows.unreadable:
            problems.append(f"{path / 'metrics.jsonl'}: {rows.unreadable} unreadable lines are left out")
    except UserError as error:
        rows = []
        problems.append(str(error))
    steps, losses = series(rows, "loss")
    seconds = training_seconds(rows, config["config.batch_size"])
    rates, waits = series(rows, "examples_per_second")[1], series(rows, "data_wait")[1]
    evaluations = newest_evaluations(path / "evals", problems)
    if steps and steps[-1] >= config["config.total_steps"]:
        missing = sorted(_evaluators(config) - evaluations.keys())
        if missing:
            problems.append(
                f"{path}: trained to its end and without figures of {', '.join(missing)}; "
                f"`smke evaluate --workdir={shlex.quote(str(path))}` makes them"
            )
    return Run(
        name, path, config, identity, devices, device, int(max(steps, default=0)), evaluations,
        examples_per_second=float(np.median(rates)) if rates else None,
        data_wait=float(np.average(waits, weights=seconds)) if rates and len(waits) == len(rates) else None,
        hours=float(seconds.sum()) / 3600 if rates else None,
        loss=losses[-1] if losses else None,
        memory=max(series(rows, "peak_memory_gib")[1], default=None),
        commit=said.get("commit"),
    )  # fmt: skip


def _evaluators(config: Mapping[str, Any]) -> set[str]:
    return {key.split(".")[2] for key in config if key.startswith("config.evaluators.")}


def _failed_jobs(folder: Path) -> list[str]:
    """Why runs of a sweep are missing or not finished, where its record says so."""
    try:
        records = Ledger(folder).records
        return [f"{folder / name} {said['state']}: {said['error']}" for name, said in records.items()
                if said["state"] in (FAILED, SKIPPED)]  # fmt: skip
    except UserError as error:
        return [str(error)]
    except (KeyError, TypeError):
        return [f"{folder / 'jobs.json'} is damaged: what it says of failed runs is left out"]


def _natural(path: Path) -> list:
    """Sorts batch_size=64 before batch_size=256."""
    return [(int(x), "") if x.isdecimal() else (-1, x) for x in re.split(r"(\d+)", path.name)]
