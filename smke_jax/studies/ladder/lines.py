"""The lines of the ladder: what each recipe reached, and how it differs from the one that it stands against.

Recipes are compared by `evaluators.bootstrap.paired_difference`: they are asked the same queries of the same gallery.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax.errors import UserError
from smke_jax.evaluators.bootstrap import mean_recalls, paired_difference
from smke_jax.evaluators.ranks import Ranks, read_ranks
from smke_jax.studies.compare.rows import SEED, Row
from smke_jax.studies.compare.table import steps_cell
from smke_jax.studies.ladder.recipes import Recipe
from smke_jax.studies.runs import Run, read_runs
from smke_jax.training.record import differences


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


def read_lines(recipes: Sequence[Recipe], out: Path) -> tuple[list[Line], list[str]]:
    """(the lines of the recipes that have a run in `out`, one line for everything that is amiss); nothing compared."""
    runs, problems = read_runs([out]) if out.is_dir() else ([], [])
    lines = []
    for recipe in recipes:
        own = [run for run in runs if _folder(run, out) == recipe.run_name(run.config[SEED])]
        whole = _alike([run for run in own if run.is_finished and run.retrieval], problems)
        problems += [f"{run.path}: {steps_cell(run)}" for run in own if whole and run not in whole]
        if not own:
            continue
        try:
            ranks = tuple(read_ranks(run.retrieval.arrays) for run in whole)
            line = Line(recipe, Row(recipe.name, tuple(whole or own[:1]), {}), ranks)
            if ranks:
                recalls, interval = mean_recalls(ranks)
                line = line._replace(recalls=recalls, interval=interval)
        except UserError as error:
            problems.append(str(error))
            line = Line(recipe, Row(recipe.name, tuple(whole), {}), ())
        lines.append(line)
    return lines, problems


def has_runs(recipes: Sequence[Recipe], out: Path) -> bool:
    """Whether one of the recipes has a run in `out`."""
    runs = read_runs([out])[0] if out.is_dir() else []
    return any(_folder(run, out) == recipe.run_name(run.config[SEED]) for run in runs for recipe in recipes)


def _folder(run: Run, out: Path) -> str:
    """The folder in `out` where the run lies; of several stages it holds all of them."""
    return run.path.relative_to(out).parts[0]


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


def compared(line: Line, recipes: Sequence[Recipe], lines: Sequence[Line], reference: str, problems: list[str]) -> Line:
    """`line` with its differences to `reference`, or to what its rung names, or to the rung before it.

    What keeps them from being compared is added to `problems`.
    """
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
    return run.identity.get("data"), run.config.get(f"config.evaluators.{run.retrieval.name}.split")


def _budget(run: Run) -> str:
    return f"{run.total_steps} steps of {run.batch_size}"


def _sight(run: Run) -> str:
    """The protocol without the name of the gallery."""
    return run.retrieval.record["protocol"].partition(", ")[2]
