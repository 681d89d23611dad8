"""The ladder of recipes as Markdown, JSON and a picture: what each brings, beside the thesis' own figures."""

import json
from collections.abc import Sequence
from pathlib import Path

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.reporting.evaluations import RECALLS
from smke_jax.reporting.plots import png_bytes
from smke_jax.studies.compare.rows import SEED
from smke_jax.studies.compare.table import evaluations_as_json
from smke_jax.studies.ladder.lines import Line, compared, read_lines
from smke_jax.studies.ladder.plot import ladder_figure
from smke_jax.studies.ladder.recipes import Recipe
from smke_jax.studies.ladder.tables import dataset, measured_table, notes, thesis_table


def write_ladder(recipes: Sequence[Recipe], out: Path, *, reference: str = "", head: str) -> tuple[str, bytes]:
    """Compares what stands in `out`, a directory of runs named by `Recipe.run_name`; returns Markdown and a PNG.

    Writes both, and ladder.json, into `out`. `reference` names the recipe that all are compared with, instead of each
    with its own; `head` stands above the table. Raises UserError where none of the recipes has a run.
    """
    lines, problems = read_lines(recipes, out)
    if not lines:
        raise UserError(f"{out} has no run of {', '.join(recipe.name for recipe in recipes)}")
    if reference and reference not in [line.recipe.name for line in lines]:
        problems.append(f"{reference} has no run in {out}, so that nothing can be compared with it")
    lines = [compared(line, recipes, lines, reference, problems) for line in lines]
    picture = png_bytes(ladder_figure(lines))
    text = "\n\n".join(
        [
            f"## Measured on {dataset(lines)}", head, measured_table(lines), "\n".join(notes(lines, problems)),
            "![mean recalls of the recipes, here and in the thesis](ladder.png)",
            "## The thesis' figures", thesis_table(recipes),
            "- R@1 / R@5 / R@10 in percent, of models of about 117M parameters trained on 3.3M pairs of COCO and "
            "Conceptual Captions; the means are those of the six recalls.",
        ]
    )  # fmt: skip
    atomic.write_text(out / "ladder.json", json.dumps(_as_json(lines, problems), indent=1) + "\n")
    write_table(out, text, picture)
    return text, picture


def write_table(folder: Path, text: str, picture: bytes) -> Path:
    """Writes what `write_ladder` returned as ladder.md and ladder.png of `folder`; returns the first."""
    atomic.write_bytes(folder / "ladder.png", picture)
    return atomic.write_text(folder / "ladder.md", f"# The ladder of recipes\n\n{text}\n")


def _as_json(lines: list[Line], problems: list[str]) -> dict:
    names = [*(f"{direction}/{key}" for direction, key in RECALLS), "mean"]

    def figures(value, interval, sign=None):
        if value is None:
            return None
        columns = zip(names, value.tolist(), interval.T.tolist())
        return {name: {"value": x, "ci95": span} | ({"significant": sign(i)} if sign else {})
                for i, (name, x, span) in enumerate(columns)}  # fmt: skip

    return {
        "recipes": [
            {
                "name": line.recipe.name,
                "rung": line.recipe.rung._asdict(),
                "recalls": figures(line.recalls, line.interval),
                "against": line.against and line.against.name,
                "difference": figures(line.difference, line.difference_interval, line.sign),
                "runs": [
                    {"path": str(run.path), "seed": run.config[SEED], "batch_size": run.batch_size,
                     "device": run.device, "devices": run.devices, "step": run.step, "total_steps": run.total_steps,
                     "examples_per_second": run.examples_per_second, "hours": run.hours, "peak_memory_gib": run.memory,
                     "loss": run.loss, "evaluations": evaluations_as_json(run)}
                    for run in line.row.runs
                ],
            }
            for line in lines
        ],
        "problems": problems,
    }  # fmt: skip
