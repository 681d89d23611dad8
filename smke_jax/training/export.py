"""A run's trained network as a directory for others to use."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from smke_jax.convert.export.base import Network, Record
from smke_jax.convert.export.check import Likeness, Samples, draw_samples
from smke_jax.convert.export.write import write
from smke_jax.errors import UserError
from smke_jax.json_text import parse_json
from smke_jax.parallel.process import check_shared, failing_together
from smke_jax.reporting.metrics_log import read_metrics, training_seconds
from smke_jax.training.restore import TrainedRun, exported, restore_run


class Export(NamedTuple):
    """What was written, and how like it is to the network that it was made from."""

    network: Network
    samples: Samples
    likeness: Mapping[str, Likeness]


def export_run(
    workdir: Path,
    out: Path,
    *,
    step: int | Literal["best"] | None = None,
    format: str = "flax",
    dtype: str = "float32",
) -> Export | None:
    """Writes the network of a run to the directory `out`, which must not be there, and checks it.

    step: of the checkpoint; None is the newest
    format, dtype: of smke_jax.convert.export.FORMATS and .base.DTYPES
    Of several processes all have to call it; process 0 writes, and the others get None.
    """
    written, first = None, jax.process_index() == 0
    with failing_together():
        if first and out.exists():
            raise UserError(f"{out} is already there: remove it or choose another --out")
    run = restore_run(workdir, step=step)
    network, task = network_of(run), run.experiment.task
    with failing_together():
        if first:
            splits = [evaluator.split for evaluator in run.experiment.recipe.evaluators.values()]
            samples = draw_samples(task, (*splits, task.train), network.description)
            written = Export(network, samples, write(out, network, samples, format=format, dtype=dtype))
    check_shared(out)
    return written


def network_of(run: TrainedRun) -> Network:
    """What `run` is kept for, and its record."""
    params, description = exported(run)
    reads_text = "vocab_size" in {**description, **description.get("text", {})}
    record = Record(
        run=run.record,
        config=run.config,
        step=run.step,
        figures=_figures(run.workdir / "evals" / str(run.step)),
        hours=_hours(run.workdir / "metrics.jsonl", run.step, run.config["batch_size"]),
    )
    return Network(jax.device_get(params), description, run.experiment.task.tokenizer if reads_text else None, record)


def _figures(folder: Path) -> dict[str, Any]:
    """What each evaluation of a step found, by the name of its file."""
    return {
        path.stem: parse_json(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"), key=lambda path: path.stem)
    }


def _hours(metrics: Path, step: int, batch_size: int) -> float | None:
    """What the steps up to `step` took, by the examples per second that were logged."""
    rows = read_metrics(metrics) if metrics.is_file() else []
    seconds = training_seconds([row for row in rows if row.get("step", 0) <= step], batch_size)
    return float(seconds.sum()) / 3600 if len(seconds) else None
