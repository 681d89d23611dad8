"""What a run directory says of its run, in one record; what cannot be read becomes a line instead of an error."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smke_jax.config import base
from smke_jax.errors import UserError
from smke_jax.reporting.metrics_log import read_metrics, series, training_seconds
from smke_jax.studies.jobs import FAILED, SKIPPED, Ledger
from smke_jax.training.record import flatten, read_run

DIRECTIONS = ("image_to_text", "text_to_image")
RECALLS = tuple((direction, key) for direction in DIRECTIONS for key in ("r1", "r5", "r10"))


@dataclass(frozen=True)
class Run:
    """One run; None where it has not said it yet.

    config:              {'config.a.b': value}, every field of the run's config and of today's loop
    devices, device:     how many it used, and of what kind
    step:                last one logged
    retrieval:           the newest evaluation, what `retrieval_metrics` returns
    evaluated_at:        its step
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
    retrieval: Mapping | None
    evaluated_at: int | None
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

    def recall(self, direction: str, key: str) -> float | None:
        """Of 'image_to_text' or 'text_to_image' at 'r1', 'r5' or 'r10', in percent."""
        return self.retrieval and self.retrieval[direction][key]

    def interval(self, direction: str, key: str) -> tuple[float, float] | None:
        """The 95 % interval of `recall`."""
        return tuple(self.retrieval["ci95"][direction][key]) if self.retrieval and self.retrieval["ci95"] else None


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs at `paths`, run directories or directories of them, and one line for everything that is amiss."""
    found: list[Path] = []
    problems: list[str] = []
    for path in paths:
        if (path / "run.json").exists():
            found.append(path)
            continue
        inner = sorted((x.parent for x in path.glob("*/run.json")), key=_natural)
        if not inner:
            problems.append(f"{path}: neither a run directory nor a directory of them, it has no run.json")
        found += inner
        problems += _failed_jobs(path)
    found = list({path.resolve(): path for path in found}.values())
    names = [path.resolve().name for path in found]
    runs = []
    for path, name in zip(found, names):
        try:
            runs.append(_read_run(path, name if names.count(name) == 1 else str(path), problems))
        except UserError as error:
            problems.append(str(error))
    return runs, problems


def _read_run(path: Path, name: str, problems: list[str]) -> Run:
    said = read_run(path)
    try:
        config = {**flatten(base()), **said["config"]}
        devices = config["config.num_devices"] or len(said["devices"])
        identity, device = dict(said["identity"]), said["devices"][0]
    except (KeyError, TypeError, ValueError, IndexError):
        raise UserError(f"{path / 'run.json'} is not the record of a run: give directories of `smke train`") from None
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
    evaluated_at, retrieval = _newest_evaluation(path / "evals", problems)
    if retrieval is None and steps and steps[-1] >= config["config.total_steps"] and _retrieves(config):
        problems.append(f"{path}: trained to its end and not evaluated; `smke evaluate --workdir={path}` does it")
    return Run(
        name, path, config, identity, devices, device, int(max(steps, default=0)), retrieval, evaluated_at,
        examples_per_second=float(np.median(rates)) if rates else None,
        data_wait=float(np.average(waits, weights=seconds)) if rates and len(waits) == len(rates) else None,
        hours=float(seconds.sum()) / 3600 if rates else None,
        loss=losses[-1] if losses else None,
        memory=max(series(rows, "peak_memory_gib")[1], default=None),
        commit=said.get("commit"),
    )  # fmt: skip


def _retrieves(config) -> bool:
    return any(key.startswith("config.evaluators.retrieval.") for key in config)


def _newest_evaluation(folder: Path, problems: list[str]) -> tuple[int | None, Mapping | None]:
    """(step, figures) of the last evaluation that can be read."""
    for step in sorted((int(x.name) for x in folder.glob("*") if x.name.isdecimal()), reverse=True):
        path = folder / str(step) / "retrieval.json"
        if not path.exists():  # an evaluation of another kind
            continue
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            bounds = metrics["ci95"] and [metrics["ci95"][direction][key] for direction, key in RECALLS]
            values = [metrics[direction][key] for direction, key in RECALLS]
            np.asarray(values + [x for low, high in bounds or () for x in (low, high)], float)
            str(metrics["protocol"]), int(metrics["n_images"]), int(metrics["n_captions"])
        except (OSError, KeyError, TypeError, ValueError):
            problems.append(f"{path} is damaged: its figures are left out")
            continue
        return step, metrics
    return None, None


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
