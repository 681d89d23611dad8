"""The ladder's tables in Markdown: what was measured, how to read it, and the thesis' own figures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smke_jax.reporting.evaluations import RECALLS
from smke_jax.reporting.markdown import markdown_table
from smke_jax.studies.compare.table import (
    INTERVAL_NOTE,
    RECALL_TITLES,
    figure_columns,
    number_cell,
    protocol_notes,
    recall_cell,
    steps_cell,
)
from smke_jax.studies.job import START, start_files
from smke_jax.studies.ladder.recipes import Recipe
from smke_jax.studies.runs import Run

MARKS = {1: "▲", -1: "▼", 0: "", None: ""}


def dataset(lines: Sequence) -> str:
    """What `lines` (of `ladder.Line`) were evaluated on."""
    found = [run.retrieval.record for line in lines for run in line.row.runs if run.retrieval]
    names = {record["protocol"].partition(",")[0] for record in found}
    return " and ".join(sorted(names)) or "nothing yet"


def measured_table(lines: Sequence) -> str:
    """One row for each of `lines` (of `ladder.Line`)."""
    others = figure_columns([line.row for line in lines])
    titles = ["recipe", "what changed", *RECALL_TITLES, "mean", "against", "difference of the mean",
              "in the thesis: COCO / Flickr30K", *(x.title for x in others), "steps", "steps/s", "minutes",
              "memory, GiB"]  # fmt: skip
    return markdown_table(titles, [_cells(line, [x.cell(line.row) for x in others]) for line in lines])


def _cells(line, others: list[str]) -> list[str]:
    row, rung = line.row, line.recipe.rung
    recalls = [f"{recall_cell(row, *which)} {MARKS[line.sign(i)]}".rstrip() for i, which in enumerate(RECALLS)]
    mean = difference = "–"
    if line.recalls is not None:
        low, high = line.interval[:, -1]
        mean = f"{line.recalls[-1]:.1f} ±{(high - low) / 2:.1f}"
    if line.against is not None and line.difference is None:
        difference = "not compared"
    if line.difference is not None:
        low, high = line.difference_interval[:, -1]
        difference = f"{line.difference[-1]:+.1f} ({low:+.1f} to {high:+.1f}) {MARKS[line.sign(-1)]}".rstrip()
    seeds = f", {len(row.runs)} seeds" if len(row.runs) > 1 else ""
    steps_per_second = row.mean(lambda run: run.examples_per_second and run.examples_per_second / run.batch_size)
    return [
        row.name, rung.changed, *recalls, mean, line.against.name if line.against else "–", difference,
        _thesis_difference(line), *others, steps_cell(row.runs[0]) + seeds, number_cell(steps_per_second, ".2f"),
        number_cell(row.mean(lambda run: run.hours and 60 * run.hours), ".1f"),
        number_cell(row.mean(lambda run: run.memory), ".1f"),
    ]  # fmt: skip


def _thesis_difference(line) -> str:
    ours, theirs = line.recipe.rung, line.against and line.against.rung
    if theirs is None or ours.published != theirs.published:
        return "–"
    pairs = [(getattr(ours, name), getattr(theirs, name)) for name in ("coco", "flickr30k")]
    return " / ".join(f"{np.mean(a) - np.mean(b):+.1f}" if a and b else "–" for a, b in pairs)


def notes(lines: Sequence, problems: list[str]) -> list[str]:
    """What one has to know to read the table."""
    runs = [run for line in lines for run in line.row.runs]
    seeds = {len(line.row.runs) for line in lines}
    tests = sum(line.difference is not None for line in lines)
    said = [*protocol_notes(runs), INTERVAL_NOTE]
    if max(seeds) > 1:
        said.append(
            "Recalls of several seeds: the mean, and in brackets the lowest and the highest of them. The intervals of "
            "their means and differences hold what other seeds might give, too."
        )
    if tests:
        said.append(
            "▲ better and ▼ worse than the recipe it stands against: the 95 % interval of the paired difference, over "
            "the images that both were asked for, leaves out zero. If none of them were real, "
            f"{tests / 20:.2g} of these {tests} differences of the mean would do so by chance."
            + (" Of a recipe with one seed it says nothing of other seeds." if 1 in seeds else "")
        )
    said += _settings(runs)
    devices = sorted({f"{run.devices} × {run.device}" for run in runs})
    commits = sorted({run.commit for run in runs if run.commit})
    said.append(
        f"Trained on {', '.join(devices)}, code of {', '.join(commits) or 'commits that are not recorded'}. Minutes "
        "are those of the training steps alone. Memory is the peak of the device, or of the whole process where the "
        "device does not say (CPU)."
    )
    return [f"- {note}" for note in (*said, *problems)]


def _settings(runs: Sequence[Run]) -> list[str]:
    """What stands here for the thesis' pretrained networks and for their classes."""
    starts: dict[str, set[str]] = {}
    for run in runs:
        for key, file in start_files(run.config).items():
            network, part = START.fullmatch(key).groups()
            starts.setdefault(f"{network} ({part})" if part else network, set()).add(_origin(run, file))
    classes = {value for run in runs for key, value in run.config.items() if key.endswith(".stand_in_classes")}
    said = []
    if starts:
        parts = [f"{network} from {' or '.join(sorted(files))}" for network, files in sorted(starts.items())]
        said.append(f"Whatever the thesis' networks start from, here they start so: {', '.join(parts)}.")
    if stand_ins := sorted(filter(None, classes)):
        said.append(
            "A classifier's logits are, for want of one, the cosines of its [CLS] with "
            f"{' or '.join(map(str, stand_ins))} fixed random directions."
        )
    return said


def _origin(run: Run, file: str) -> str:
    """The file, or the stage of the same run that made it."""
    stage = Path(file).parent
    return f"its stage {stage.name}" if stage.parent == run.path.parent else file


def thesis_table(recipes: Sequence[Recipe]) -> str:
    """The published figures of all recipes."""
    titles = ["recipe", "what changed"]
    for name in ("COCO", "Flickr30K"):
        titles += [f"{name} image → text", f"{name} text → image", f"{name} mean"]
    return markdown_table([*titles, "ImageNet zero-shot"], map(_thesis_cells, recipes))


def _thesis_cells(recipe: Recipe) -> list[str]:
    cells = [recipe.name, "; published with ".join(filter(None, (recipe.rung.changed, recipe.rung.published)))]
    for figures in (recipe.rung.coco, recipe.rung.flickr30k):
        directions = (figures[:3], figures[3:]) if len(figures) == 6 else ((), ())
        cells += [" / ".join(f"{x:g}" for x in part) or "–" for part in directions]
        cells.append(f"{np.mean(figures).round(2):g}" if figures else "–")
    return [*cells, number_cell(recipe.rung.imagenet, "g")]
