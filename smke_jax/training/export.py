"""A run's trained network as a directory for others to use."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from smke_jax.convert.export import INT8
from smke_jax.convert.export.base import Network, Record
from smke_jax.convert.export.check import Likeness, Samples, draw_samples
from smke_jax.convert.export.write import write
from smke_jax.embedder import load
from smke_jax.errors import UserError
from smke_jax.evaluators.recalls import RECALL_HEADS, recall_cells, retrieval_metrics
from smke_jax.json_text import parse_json
from smke_jax.parallel.process import check_shared, failing_together
from smke_jax.passes.aligned import modalities
from smke_jax.reporting.metrics_log import read_metrics, training_seconds
from smke_jax.training.restore import TrainedRun, exported, restore_run

log = logging.getLogger("smke_jax")


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
    format, dtype: of FORMATS and DTYPES in smke_jax.convert.export
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
            options = {"format": format, "dtype": dtype}
            options["retrieval"] = _retrieval(run, network) if dtype == INT8 else None
            written = Export(network, samples, write(out, network, samples, **options))
    check_shared(out)
    return written


def _retrieval(run: TrainedRun, network: Network) -> Callable[[Path], str] | None:
    """What tells how an export retrieves beside the run itself, on the split of the run's own evaluator.

    None of a run that evaluates no retrieval, whose network embeds one modality alone, or whose data is gone.
    """
    pairs = {f"{side}/{network.description.get('level')}" for side in ("image", "text")}
    found = [x for x in run.experiment.recipe.evaluators.values() if set(x.needs) == pairs]
    if not found or len(modalities(network.description)) < 2:
        return None
    try:
        split = run.experiment.task.split(found[0].split)
        split.facts["pixels"](0)
    except (UserError, OSError) as error:
        log.info("the split %s cannot be read, so the card says nothing of retrieval: %s", found[0].split, error)
        return None

    def measure(directory: Path) -> str:
        own = run.evaluate(found[0], split).record
        model = load(directory)
        # One picture after the other: the whole gallery would not fit.
        images = model.encode_images(map(split.facts["pixels"], range(own["n_images"])))
        texts = model.encode_texts(list(split.facts["captions"]))
        metrics = retrieval_metrics(
            images, texts, split.facts["caption_image"], bootstrap=0,
            protocol=f"{split.name}, as exported; recall in percent",
        )  # fmt: skip
        rows = [("the run", own), ("as exported", metrics)]
        lines = [f"{metrics['protocol']}.", "", f"| | {RECALL_HEADS} |", "|---" * 7 + "|"]
        return "\n".join([*lines, *(f"| {' | '.join([name, *recall_cells(x)])} |" for name, x in rows)])

    return measure


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
