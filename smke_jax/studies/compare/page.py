"""The comparison as a page: the table, the curves of all runs in the same pictures, and what each run finds."""

from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from smke_jax.errors import UserError
from smke_jax.reporting import html, plots
from smke_jax.reporting.evaluations import read_evaluations, read_examples
from smke_jax.reporting.evaluator_tables import curve_row
from smke_jax.reporting.metrics_log import read_metrics, series
from smke_jax.reporting.report import DIRECTIONS, drawings, whole_page
from smke_jax.reporting.run_report import value_text
from smke_jax.studies.compare.rows import Row
from smke_jax.studies.runs import Run

LOGGED = {
    "loss": "loss",
    "grad_norm": "L2 norm of the gradient",
    "update_norm": "L2 norm of the update",
    "examples_per_second": "examples/s",
}
MOST_RUNS = len(plots.COLOURS)  # in a picture
SHOWN = 4  # captions


def comparison_page(
    rows: Sequence[Row], titles: Sequence[str], cells: Iterable[Sequence[str]], notes: Sequence[str]
) -> str:
    """The page of the runs in `rows`: the table of these cells, of which 'config' has one of its own, and `notes`."""
    runs = [run for row in rows for run in row.runs]
    shown = [number for number, title in enumerate(titles) if title != "config"]
    table = html.table([titles[n] for n in shown], [[line[n] for n in shown] for line in cells])
    lines = "".join(f"<li>{html.escape(note.removeprefix('- '))}</li>" for note in notes)
    drawn = drawings(_curves(runs[:MOST_RUNS]), "curve")
    parts = {
        "table": html.section("Runs", table, f'<ul class="soft">{lines}</ul>'),
        "differences": _differences(rows),
        "curves": html.section("Curves", drawn, note=_left_out(runs)) if drawn else "",
        "examples": _examples(runs[:MOST_RUNS]),
    }
    present = {name: part for name, part in parts.items() if part}
    title = f"{len(runs)} runs beside each other" if len(runs) > 1 else f"Run {runs[0].name}"
    return whole_page(title, (), (), present)


def _differences(rows: Sequence[Row]) -> str:
    """The fields in which the configs differ, with a column for each row of the comparison."""
    fields = dict.fromkeys(key for row in rows for key in row.different)
    lines = [(key.removeprefix("config."), *(value_text(row.different.get(key)) for row in rows)) for key in fields]
    if not lines:
        return ""
    return html.section(
        "Where the configs differ", html.table(("field", *(row.name for row in rows)), lines, said=True)
    )


def _left_out(runs: Sequence[Run]) -> str:
    return f"The first {MOST_RUNS} of {len(runs)} runs are drawn." if len(runs) > MOST_RUNS else ""


def _curves(runs: Sequence[Run]) -> list[tuple[Figure | None, str]]:
    """(figure, caption) of everything that is logged or evaluated in the same way, with a line for each run."""
    found = []
    for direction, name in DIRECTIONS.items():
        rows, labels = _recalls(runs, f"{direction}/r1")
        found.append((plots.evaluation_figure(rows, labels, "R@1, %"), f"R@1 {name} against the step, 95 % intervals"))
    logged = {run.name: _logged(run) for run in runs}
    scales = sorted({key for rows in logged.values() for row in rows for key in row if "logit_scale" in key})
    for key, label in {**LOGGED, **{scale: "logit scale" for scale in scales}}.items():
        rows = [{"step": s, name: x} for name, own in logged.items() for s, x in zip(*series(own, key))]
        figure = plots.evaluation_figure(rows, {run.name: run.name for run in runs}, label)
        found.append((figure, f"{key} against the step"))
    return found


def _recalls(runs: Sequence[Run], key: str) -> tuple[list[dict], dict[str, str]]:
    """(rows, {key of a row: name of the run}) of the first evaluator of each run that has recalls."""
    rows, labels = [], {}
    for run in runs:
        if run.retrieval is None:
            continue
        whole = f"eval/{run.retrieval.name}/{key}"
        labels[f"{run.name}:{whole}"] = run.name
        for evaluation in read_evaluations(run.path / "evals", []):  # what is damaged is named with the table
            if evaluation.name == run.retrieval.name:
                row = curve_row(evaluation)
                own = {f"{run.name}:{whole}{end}": row.get(f"{whole}{end}") for end in ("", "/low", "/high")}
                rows.append({"step": evaluation.step, **own})
    return rows, labels


def _logged(run: Run) -> list[dict]:
    try:
        return read_metrics(run.path / "metrics.jsonl")
    except UserError:  # it is named with the table
        return []


def _examples(runs: Sequence[Run]) -> str:
    """What each run finds for the same captions, where several runs were evaluated on the same ones."""
    found: dict[str, dict[str, list]] = {}  # {caption: {run: images}}
    for run in runs:
        for examples in read_examples(run.path / "evals", []).values():
            for caption, images in examples["text_to_image"]:
                found.setdefault(caption, {})[run.name] = images
    shared = {caption: own for caption, own in found.items() if len(own) > 1}
    rows = []
    for caption, own in list(shared.items())[:SHOWN]:
        strips = [
            html.paragraph(name, "soft") + html.hits([html.hit(x, right, alt=f"match for: {caption}")
                                                      for x, right in images])
            for name, images in own.items()
        ]  # fmt: skip
        rows.append(f'<div class="row">{html.paragraph(caption)}{"".join(strips)}</div>')
    note = "Best first; green ✓ is the caption's own image, red ✗ another one. Of the newest evaluation of each run."
    return html.section("Captions and the images found for them", *rows, note=note) if rows else ""
