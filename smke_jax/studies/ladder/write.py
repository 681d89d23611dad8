"""The ladder of recipes: what each brings on the same photos, beside the thesis' own figures.

Recipes are compared by `evaluation.bootstrap.paired_difference`: they are asked the same queries of the same gallery.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax import atomic
from smke_jax.errors import UserError
from smke_jax.evaluators.bootstrap import mean_recalls, paired_difference
from smke_jax.evaluators.ranks import Ranks, read_ranks
from smke_jax.reporting.plots import png_bytes
from smke_jax.rungs import Recipe
from smke_jax.studies.compare.table import SEED, Row, steps_cell
from smke_jax.studies.ladder.plot import ladder_figure
from smke_jax.studies.ladder.tables import dataset, measured_table, notes, thesis_table
from smke_jax.studies.runs import RECALLS, Run, read_runs
from smke_jax.training.record import differences

BEGIN, END = "<!-- written by `smke ladder` -->", "<!-- end of what `smke ladder` wrote -->"


class Line(NamedTuple):
    """A recipe that was run; of the arrays the first six are RECALLS, and the last is their mean."""

    recipe: Recipe
    row: Row
    ranks: tuple[Ranks, ...]  # of each seed; empty where some are missing
    recalls: np.ndarray | None = None  # (7,) percent, over the seeds
    interval: np.ndarray | None = None  # (2, 7)
    against: Recipe | None = None
    difference: np.ndarray | None = None  # (7,) to `against`
    difference_interval: np.ndarray | None = None  # (2, 7)

    def sign(self, which: int) -> int | None:
        """1 or -1 where this is significantly better or worse than `against`, else 0; None where not compared."""
        if self.difference_interval is None:
            return None
        low, high = self.difference_interval[:, which]
        return int(low > 0) - int(high < 0)


def run_name(recipe: Recipe, seed: int) -> str:
    """Of the directory of one run of a recipe."""
    return f"{recipe.name.replace(':', '-')},seed={seed}"


def write_ladder(recipes: Sequence[Recipe], out: Path, *, reference: str = "", head: str) -> tuple[str, bytes]:
    """Compares what stands in `out`, a directory of runs named by `run_name`; returns Markdown and a PNG.

    Writes both, and ladder.json, into `out`. `reference` names the recipe that all are compared with, instead of each
    with its own; `head` stands above the table. Raises UserError where none of the recipes has a run.
    """
    lines, problems = _read_lines(recipes, out)
    if not lines:
        raise UserError(f"{out} has no run of {', '.join(recipe.name for recipe in recipes)}")
    if reference and reference not in [line.recipe.name for line in lines]:
        problems.append(f"{reference} has no run in {out}, so that nothing can be compared with it")
    lines = [_compared(line, recipes, lines, reference, problems) for line in lines]
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
    atomic.write_bytes(out / "ladder.png", picture)
    atomic.write_text(out / "ladder.json", json.dumps(_as_json(lines, problems), indent=1) + "\n")
    atomic.write_text(out / "ladder.md", f"# The ladder of recipes\n\n{text}\n")
    return text, picture


def write_readme(folder: Path, text: str, picture: bytes) -> Path:
    """Puts what `write_ladder` returned into README.md of `folder`, in place of the earlier one; keeps the rest."""
    path = folder / "README.md"
    old = path.read_text(encoding="utf-8") if path.exists() else "# Recipes\n"
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and not end:
        raise UserError(f"{path} has no line {END!r} after {BEGIN!r}: put it where the ladder's part ends")
    atomic.write_bytes(folder / "ladder.png", picture)
    return atomic.write_text(path, f"{before.rstrip()}\n\n{BEGIN}\n\n{text}\n\n{END}{after or chr(10)}")


def _read_lines(recipes: Sequence[Recipe], out: Path) -> tuple[list[Line], list[str]]:
    runs, problems = read_runs([out]) if any(out.glob("*/run.json")) else ([], [])
    lines = []
    for recipe in recipes:
        own = [run for run in runs if run.path.name == run_name(recipe, run.config["config.seed"])]
        whole = _alike([run for run in own if run.is_finished and run.retrieval], problems)
        problems += [f"{run.path}: {steps_cell(run)}" for run in own if whole and run not in whole]
        if not own:
            continue
        try:
            ranks = tuple(read_ranks(run.path / "evals" / str(run.evaluated_at) / "retrieval.npz") for run in whole)
            line = Line(recipe, Row(recipe.name, tuple(whole or own[:1]), {}), ranks)
            if ranks:
                recalls, interval = mean_recalls(ranks)
                line = line._replace(recalls=recalls, interval=interval)
        except UserError as error:
            problems.append(str(error))
            line = Line(recipe, Row(recipe.name, tuple(whole), {}), ())
        lines.append(line)
    return lines, problems


def _alike(runs: list[Run], problems: list[str]) -> list[Run]:
    """Those of `runs` that differ from the first in nothing but their seed."""
    alike = [run for run in runs if not differences(_without_seed(runs[0]), _without_seed(run))]
    problems += [
        f"{run.path} is left out, a run of another config than {runs[0].path} "
        f"({differences(_without_seed(runs[0]), _without_seed(run))})"
        for run in runs if run not in alike
    ]  # fmt: skip
    return alike


def _without_seed(run: Run) -> dict:
    return {key: value for key, value in run.config.items() if key != SEED}


def _compared(line: Line, recipes: Sequence[Recipe], lines: list[Line], reference: str, problems: list[str]) -> Line:
    """`line` with its differences to `reference`, or to what its rung names, or to the rung before it."""
    names = [recipe.name for recipe in recipes]
    before = names.index(line.recipe.name) - 1
    wanted = reference or line.recipe.rung.against or (names[before] if before >= 0 else line.recipe.name)
    if wanted == line.recipe.name:
        return line
    line = line._replace(against=recipes[names.index(wanted)])
    other = next((x for x in lines if x.recipe.name == wanted), None)
    if other is None or not line.ranks or not other.ranks:
        return line
    try:
        if len({_gallery(run) for x in (line, other) for run in x.row.runs}) > 1:
            raise UserError("they were evaluated on different galleries")
        value, interval = paired_difference(line.ranks, other.ranks)
    except UserError as error:
        problems.append(f"{line.recipe.name} does not compare with {wanted}: {error}")
        return line
    for what, of in (("their training", _budget), ("how they see the gallery", _sight)):
        if (here := {of(run) for run in line.row.runs}) != (there := {of(run) for run in other.row.runs}):
            said = " against ".join("; ".join(sorted(x)) for x in (here, there))
            problems.append(f"{line.recipe.name} and {wanted} also differ in {what}: {said}")
    return line._replace(difference=value, difference_interval=interval)


def _gallery(run: Run) -> tuple:
    return run.identity.get("data"), run.config["config.eval.split"]


def _budget(run: Run) -> str:
    return f"{run.total_steps} steps of {run.batch_size}"


def _sight(run: Run) -> str:
    return f"{run.config['config.student.image.image_size']} px"


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
                    {"path": str(run.path), "seed": run.config["config.seed"], "batch_size": run.batch_size,
                     "device": run.device, "devices": run.devices, "step": run.step, "total_steps": run.total_steps,
                     "examples_per_second": run.examples_per_second, "hours": run.hours, "peak_memory_gib": run.memory,
                     "loss": run.loss, "retrieval": run.retrieval}
                    for run in line.row.runs
                ],
            }
            for line in lines
        ],
        "problems": problems,
    }  # fmt: skip
