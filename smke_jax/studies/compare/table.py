"""Several runs beside each other: a table of what differs and what came out, as Markdown and JSON, and two plots."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.reporting.plots import png_bytes
from smke_jax.studies.compare.plots import quality_figure, throughput_figure
from smke_jax.studies.runs import RECALLS, Run, read_runs

# Not named as differences: they have columns of their own, or say the same in another way.
OWN_COLUMN = {f"config.{key}" for key in ("batch_size", "num_devices", "total_steps", "epochs")}
SEED = "config.seed"
RECIPE = ("config.passes", "config.terms")  # named first
RECALL_TITLES = [f"{d.replace('_to_', ' → ')} R@1" if key == "r1" else f"R@{key[1:]}" for d, key in RECALLS]
INTERVAL_NOTE = "± is half of the 95 % bootstrap interval over the images of the gallery."
MOST_DIFFERENCES = 6  # named in the table; compare.json has all of them


class Row(NamedTuple):
    """A line of the table: one run, or finished runs that differ in nothing but their seed."""

    name: str
    runs: tuple[Run, ...]
    different: dict[str, Any]  # the config fields in which the runs of the table differ

    def mean(self, value: Callable[[Run], float | None]) -> float | None:
        """Of what the runs have of `value`."""
        values = [x for run in self.runs if (x := value(run)) is not None]
        return float(np.mean(values)) if values else None

    def span(self, direction: str, key: str) -> tuple[float, float] | None:
        """Around the mean recall: the lowest and highest of several seeds, or the 95 % interval of one run."""
        if len(self.runs) == 1:
            return self.runs[0].interval(direction, key)
        values = [x for run in self.runs if (x := run.recall(direction, key)) is not None]
        return (min(values), max(values)) if values else None


def compare(paths: Iterable[Path], out: Path | None = None) -> str:
    """The table of the runs at `paths` as Markdown; with `out` also compare.md, compare.json and plots in it.

    What is missing or damaged is named below the table. Raises UserError where no run can be read.
    """
    runs, problems = read_runs(paths)
    if not runs:
        raise UserError("; ".join(problems) or "no runs to compare")
    rows = make_rows(runs)
    text = "\n".join([_table(rows), "", *_notes(rows), *(f"- {problem}" for problem in problems)])
    if out is not None:
        figures = {"quality.png": quality_figure(rows), "throughput.png": throughput_figure(rows)}
        drawn = {name: figure for name, figure in figures.items() if figure is not None}
        for name, figure in drawn.items():
            atomic.write_bytes(out / name, png_bytes(figure))
        pictures = "\n".join(f"![{name.removesuffix('.png')}]({name})" for name in drawn)
        atomic.write_text(out / "compare.md", f"{text}\n\n{pictures}".rstrip() + "\n")
        atomic.write_text(out / "compare.json", json.dumps(_as_json(rows, problems), indent=1) + "\n")
    return text


def make_rows(runs: Sequence[Run]) -> list[Row]:
    """The runs in their order, those put together that differ in their seed alone."""
    keys = sorted({key for run in runs for key in run.config}, key=lambda key: (not key.startswith(RECIPE), key))
    varied = [key for key in keys if key not in OWN_COLUMN and len({_json(run.config.get(key)) for run in runs}) > 1]
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in run.config.items() if key not in (SEED, "config.num_devices")}
        alike = _json([rest, run.identity, run.devices, run.device])
        groups.setdefault(alike if run.is_finished else run.path, []).append(run)
    return [_row(tuple(group), varied) for group in groups.values()]


def _row(runs: tuple[Run, ...], varied: list[str]) -> Row:
    different = {key: runs[0].config.get(key) for key in varied}
    if len(runs) == 1:
        return Row(runs[0].name, runs, different)
    different[SEED] = [run.config[SEED] for run in runs]
    without_seed = {re.sub(r"[,_-]?seed[=_-]?\d+", "", run.name) for run in runs}
    (name,) = without_seed if len(without_seed) == 1 else ("",)
    return Row(name or ", ".join(run.name for run in runs), runs, different)


def _table(rows: list[Row]) -> str:
    titles = ["run", "config", "devices", "batch", "steps", *RECALL_TITLES, "examples/s", "data wait", "hours", "loss"]
    return markdown_table(titles, map(_cells, rows))


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown whose columns are aligned in its text too."""
    lines = [titles, ["---"] * len(titles), *rows]
    lines = [[cell.replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width, "-" if cell == "---" else " ") for cell, width in zip(line, widths)) + " |"
        for line in lines
    )


def _cells(row: Row) -> list[str]:
    run = row.runs[0]
    wait = row.mean(lambda run: run.data_wait)
    return [
        row.name,
        _differences(row.different),
        f"{run.devices} × {run.device}",
        str(run.batch_size),
        steps_cell(run),
        *(recall_cell(row, direction, key) for direction, key in RECALLS),
        number_cell(row.mean(lambda run: run.examples_per_second), ",.0f"),
        number_cell(wait and 100 * wait, ".1f", " %"),
        number_cell(row.mean(lambda run: run.hours), ".2f"),
        number_cell(row.mean(lambda run: run.loss), ".4g"),
    ]


def _differences(different: dict[str, Any]) -> str:
    shown = [f"{key.removeprefix('config.')}={_short(value)}" for key, value in different.items()]
    more = len(shown) - MOST_DIFFERENCES
    return ", ".join([*shown[:MOST_DIFFERENCES], *([f"{more} more"] if more > 0 else [])])


def _short(value) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)
    return text if len(text) <= 40 else f"…{text[-39:]}"


def recall_cell(row: Row, direction: str, key: str) -> str:
    """A recall with its 95 % interval, or the mean of several seeds with the lowest and the highest."""
    value, span = row.mean(lambda run: run.recall(direction, key)), row.span(direction, key)
    if value is None:
        return "–"
    late = row.runs[0].evaluated_at < row.runs[0].step
    at = f" at {row.runs[0].evaluated_at}" if late else ""
    if span is None:
        return f"{value:.1f}{at}"
    low, high = span
    return f"{value:.1f} ({low:.1f}–{high:.1f})" if len(row.runs) > 1 else f"{value:.1f} ±{(high - low) / 2:.1f}{at}"


def steps_cell(run: Run) -> str:
    """The steps of a run, and of how many where it is not finished."""
    return str(run.step) if run.is_finished else f"{run.step} of {run.total_steps}, not finished"


def number_cell(value: float | None, form: str, unit: str = "") -> str:
    """`value` in the format `form`, or a dash."""
    return "–" if value is None else f"{value:{form}}{unit}"


def _notes(rows: list[Row]) -> list[str]:
    """What one has to know to read the table."""
    runs = [run for row in rows for run in row.runs]
    notes = protocol_notes(runs)
    if len(notes) > 1:
        notes.append("Recalls of different galleries or protocols do not compare.")
    if any(len(row.runs) == 1 and row.runs[0].retrieval for row in rows):
        notes.append(INTERVAL_NOTE)
    if any(len(row.runs) > 1 for row in rows):
        notes.append("With several seeds: the mean, and in brackets the lowest and the highest of them.")
    if len({run.batch_size for run in runs}) > 1:
        notes.append("Contrastive losses grow with the global batch: compare them at equal batches only.")
    if any(run.devices > 1 and run.device == "cpu" for run in runs):
        notes.append("CPU devices share the cores of their host: their examples/s say nothing about scaling.")
    if len({run.identity.get("data") for run in runs}) > 1:
        notes.append("The runs were not trained on the same data.")
    notes.append("Hours are those of the training steps, without start-up, evaluation and saving.")
    return [f"- {note}" for note in notes]


def protocol_notes(runs: Iterable[Run]) -> list[str]:
    """What the recalls of `runs` are of: a line for each protocol and gallery."""
    protocols = {f"{m['protocol']}: {m['n_images']} images, {m['n_captions']} captions"
                 for run in runs if (m := run.retrieval)}  # fmt: skip
    return [f"Recalls in percent, {protocol}." for protocol in sorted(protocols)]


def _as_json(rows: list[Row], problems: list[str]) -> dict:
    return {
        "rows": [
            {
                "name": row.name,
                "different": row.different,
                "recall": {
                    f"{direction}/{key}": {
                        "mean": row.mean(lambda run, d=direction, k=key: run.recall(d, k)),
                        "span": row.span(direction, key),
                    }
                    for direction, key in RECALLS
                },
                "runs": [_run_as_json(run) for run in row.runs],
            }
            for row in rows
        ],
        "problems": problems,
    }


def _run_as_json(run: Run) -> dict:
    fields = ("name", "devices", "device", "batch_size", "step", "total_steps", "is_finished", "retrieval",
              "evaluated_at", "examples_per_second", "data_wait", "hours", "loss")  # fmt: skip
    return {"path": str(run.path), "seed": run.config[SEED], **{name: getattr(run, name) for name in fields}}


def _json(value) -> str:
    return json.dumps(value, sort_keys=True)
