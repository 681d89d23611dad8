"""Several runs beside each other: a table of what differs and what came out, as Markdown and JSON, and two plots."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.reporting.evaluations import RECALLS, Evaluation
from smke_jax.reporting.markdown import markdown_table
from smke_jax.reporting.plots import png_bytes
from smke_jax.reporting.run_report import value_text
from smke_jax.studies.compare.page import comparison_page
from smke_jax.studies.compare.plots import quality_figure, throughput_figure
from smke_jax.studies.compare.rows import SEED, Row, make_rows
from smke_jax.studies.runs import Run, read_runs

RECALL_TITLES = [f"{d.replace('_to_', ' → ')} R@1" if key == "r1" else f"R@{key[1:]}" for d, key in RECALLS]
INTERVAL_NOTE = "± is half of the 95 % bootstrap interval over the images of the gallery."
MOST_DIFFERENCES = 6  # named in the table; compare.json has all of them
MOST_FIGURES = 8  # of one evaluator that has no recalls


def compare(paths: Iterable[Path], out: Path | None = None) -> str:
    """The table of the runs at `paths` as Markdown; with `out` also compare.html, .md, .json and plots in it.

    What is missing or damaged is named below the table. Raises UserError where no run can be read.
    """
    runs, problems = read_runs(paths)
    if not runs:
        raise UserError("; ".join(problems) or "no runs to compare")
    rows = make_rows(runs)
    titles, cells = _table(rows)
    notes = [*_notes(rows), *(f"- {problem}" for problem in problems)]
    text = "\n".join([markdown_table(titles, cells), "", *notes])
    if out is not None:
        figures = {"quality.png": quality_figure(rows), "throughput.png": throughput_figure(rows)}
        drawn = {name: figure for name, figure in figures.items() if figure is not None}
        for name, figure in drawn.items():
            atomic.write_bytes(out / name, png_bytes(figure))
        pictures = "\n".join(f"![{name.removesuffix('.png')}]({name})" for name in drawn)
        atomic.write_text(out / "compare.md", f"{text}\n\n{pictures}".rstrip() + "\n")
        atomic.write_text(out / "compare.html", comparison_page(rows, titles, cells, notes))
        atomic.write_text(out / "compare.json", json.dumps(_as_json(rows, problems), indent=1) + "\n")
    return text


class Column(NamedTuple):
    """A column of the table: its title, and its cell in a row."""

    title: str
    cell: Callable[[Row], str]


def _table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """The titles of the columns, and the cells of each row."""
    columns = [
        Column("run", lambda row: row.name),
        Column("config", lambda row: _differences(row.different)),
        Column("devices", lambda row: f"{row.runs[0].devices} × {row.runs[0].device}"),
        Column("batch", lambda row: str(row.runs[0].batch_size)),
        Column("steps", lambda row: steps_cell(row.runs[0])),
        *_recall_columns(rows),
        *figure_columns(rows),
        Column("examples/s", lambda row: number_cell(row.mean(lambda run: run.examples_per_second), ",.0f")),
        Column("data wait", lambda row: number_cell(row.mean(_data_wait), ".1f", " %")),
        Column("hours", lambda row: number_cell(row.mean(lambda run: run.hours), ".2f")),
        Column("loss", lambda row: number_cell(row.mean(lambda run: run.loss), ".4g")),
    ]
    return [x.title for x in columns], [[x.cell(row) for x in columns] for row in rows]


def _recall_columns(rows: list[Row]) -> list[Column]:
    """Where a run has recalls."""
    if not any(run.retrieval for row in rows for run in row.runs):
        return []
    return [
        Column(title, lambda row, which=which: recall_cell(row, *which))
        for title, which in zip(RECALL_TITLES, RECALLS, strict=True)
    ]


def figure_columns(rows: Sequence[Row]) -> list[Column]:
    """The numbers of the evaluators that are not shown as recalls."""
    found: dict[str, list[str]] = {}
    for run in (run for row in rows for run in row.runs):
        for name, evaluation in run.evaluations.items():
            if evaluation is not run.retrieval:
                known = found.setdefault(name, [])
                known += [key for key in evaluation.numbers() if key not in known]
    return [
        Column(f"{name} {key}", lambda row, name=name, key=key: _figure_cell(row, name, key))
        for name, keys in found.items()
        for key in keys[:MOST_FIGURES]
    ]


def _figure_cell(row: Row, name: str, key: str) -> str:
    values = [x.numbers().get(key) for run in row.runs if (x := run.evaluations.get(name))]
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    mean = f"{np.mean(values):.4g}"
    if len(row.runs) > 1:
        return f"{mean} ({min(values):.4g}–{max(values):.4g})"
    return mean + _late(row.runs[0], row.runs[0].evaluations[name])


def _data_wait(run: Run) -> float | None:
    return None if run.data_wait is None else 100 * run.data_wait


def _late(run: Run, evaluation: Evaluation) -> str:
    """' at STEP' where the run has gone on since."""
    return f" at {evaluation.step}" if evaluation.step < run.step else ""


def _differences(different: dict[str, Any]) -> str:
    shown = [f"{key.removeprefix('config.')}={_short(value)}" for key, value in different.items()]
    more = len(shown) - MOST_DIFFERENCES
    return ", ".join([*shown[:MOST_DIFFERENCES], *([f"{more} more"] if more > 0 else [])])


def _short(value) -> str:
    text = value_text(value)
    return text if len(text) <= 40 else f"…{text[-39:]}"


def recall_cell(row: Row, direction: str, key: str) -> str:
    """A recall with its 95 % interval, or the mean of several seeds with the lowest and the highest."""
    value, span = row.mean(lambda run: run.recall(direction, key)), row.span(direction, key)
    if value is None:
        return "–"
    first = next(run for run in row.runs if run.retrieval)
    at = _late(first, first.retrieval)
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
    notes += _other_protocols(runs)
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
    records = [run.retrieval.record for run in runs if run.retrieval]
    protocols = {f"{x['protocol']}: {x['n_images']} images, {x['n_captions']} captions" for x in records}
    return [f"Recalls in percent, {protocol}." for protocol in sorted(protocols)]


def _other_protocols(runs: Iterable[Run]) -> list[str]:
    others = [x for run in runs for x in run.evaluations.values() if x is not run.retrieval]
    return sorted({f"{x.name}: {x.record['protocol']}." for x in others if isinstance(x.record.get("protocol"), str)})


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
    fields = ("name", "devices", "device", "batch_size", "step", "total_steps", "is_finished", "examples_per_second",
              "data_wait", "hours", "loss")  # fmt: skip
    return {
        "path": str(run.path),
        "seed": run.config[SEED],
        **{name: getattr(run, name) for name in fields},
        "evaluations": evaluations_as_json(run),
    }


def evaluations_as_json(run: Run) -> dict:
    """{evaluator: {'step', 'record'}}."""
    return {name: {"step": x.step, "record": x.record} for name, x in run.evaluations.items()}
