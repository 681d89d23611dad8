"""The comparison as a page: the table, the curves of all runs in the same pictures, and what each run finds."""

from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from smke_jax.errors import UserError
from smke_jax.reporting import html, plots
from smke_jax.reporting.evaluations import read_evaluations, read_examples
from smke_jax.reporting.metrics_log import read_metrics, series
from smke_jax.reporting.report import DIRECTIONS, drawings, whole_page
from smke_jax.reporting.run_report import curve_row
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
    runs: Sequence[Run],
    titles: Sequence[str],
    cells: Iterable[Sequence[str]],
    notes: Sequence[str],
    figures: Iterable[tuple[Figure | None, str]],
) -> str:
    """The page of `runs`: the table of these cells, `notes` below it, and (figure, caption) of the whole study."""
    lines = "".join(f"<li>{html.escape(note.removeprefix('- '))}</li>" for note in notes)
    parts = {
        "table": html.section("Runs", html.table(titles, cells), f'<ul class="soft">{lines}</ul>'),
        "pictures of the study": _section("The study", drawings(figures, "study")),
        "curves": _section("Curves", drawings(_curves(runs[:MOST_RUNS]), "curve"), _left_out(runs)),
        "examples that the runs share": _examples(runs[:MOST_RUNS]),
    }
    parts = {name: part for name, part in parts.items() if part or name != "pictures of the study"}
    return whole_page(f"{len(runs)} runs beside each other", (), (), parts)


def _section(title: str, inside: str, note: str = "") -> str:
    return html.section(title, inside, note=note) if inside else ""


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
        rows = [
            {"step": step, name: value} for name, own in logged.items() for step, value in zip(*series(own, key))
        ]  # fmt: skip
        figure = plots.lines_figure(rows, {run.name for run in runs}.__contains__, label)
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
