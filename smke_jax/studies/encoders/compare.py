"""The table: every encoder of a run on every task of its side that a folder has."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smke_jax.errors import UserError
from smke_jax.evaluators.base import Figures
from smke_jax.reporting.markdown import markdown_table
from smke_jax.studies.encoders.images import image_figures, image_tasks
from smke_jax.studies.encoders.texts import FOLDERS, text_figures, text_tasks
from smke_jax.studies.encoders.towers import OWN, Tower, towers_of
from smke_jax.training.restore import TrainedRun


class Half(NamedTuple):
    """What one side of a run is asked.

    tasks:   (folder) -> the tasks in it; each has a `title`
    figures: (run, tower, tasks) -> what the tower finds of each of them
    wanted:  what a folder has to hold, for people
    """

    tasks: Callable[[Path], Sequence[Any]]
    figures: Callable[[TrainedRun, Tower, Sequence[Any]], list[Figures]]
    wanted: str


HALVES = {
    "image": Half(image_tasks, image_figures, "folders of labelled images, in which each class is a folder"),
    "text": Half(text_tasks, text_figures, f"folders of GLUE's tasks ({', '.join(FOLDERS)})"),
}


def compare_encoders(run: TrainedRun, folder: Path) -> Figures:
    """What every encoder of `run` finds of every task in `folder`, with 95 % bootstrap intervals.

    An encoder that cannot be read, such as that of a file which is gone, is named in the record and in the summary.
    Raises UserError for a folder without a task that is known, and for a run without an encoder for its tasks.
    """
    record, scalars, lines, left = {"folder": folder.name}, {}, [], {}
    tasks = {side: found for side, half in HALVES.items() if (found := half.tasks(folder))}
    if not tasks:
        wanted = ", or ".join(half.wanted for half in HALVES.values())
        raise UserError(f"{folder} has nothing to compare encoders on: give a folder with {wanted}")
    for side, asked in tasks.items():
        rows, record[side] = [], {}
        with towers_of(run, side) as towers:
            for tower in towers:
                try:
                    found = dict(
                        zip((task.title for task in asked), HALVES[side].figures(run, tower, asked), strict=True)
                    )
                except UserError as error:
                    left[f"{side}: {tower.name}"] = str(error)
                    continue
                record[side][tower.name] = {title: _said(figures) for title, figures in found.items()}
                if tower.name == OWN:
                    scalars |= {f"{title}/{key}": x for title, own in found.items() for key, x in own.scalars.items()}
                rows.append([tower.name, *map(_cell, found.values())])
        if rows:
            heads = [f"{side} encoder", *(f"{title}, {next(iter(x.scalars))}" for title, x in found.items())]
            lines += ["", *markdown_table(heads, rows).splitlines()]
    if not lines:
        raise UserError(f"{run.workdir} has no encoder to compare on {folder}: {next(iter(left.values()))}")
    lines += [f"left out: {name} ({why})" for name, why in left.items()]
    return Figures(scalars, {**record, "left_out": left}, summary="\n".join(lines[1:]))


def _said(figures: Figures) -> dict[str, Any]:
    return {key: figures.record[key] for key in (*figures.scalars, "rows", "ci95")}


def _cell(figures: Figures) -> str:
    """'56.1 (47.5 to 64.7)' of the first metric."""
    name, value = next(iter(figures.scalars.items()))
    low, high = figures.record["ci95"][name]
    return f"{value:.1f} ({low:.1f} to {high:.1f})"
