"""What a report shows of a classifier: its confusion matrix, and images with the classes that were found for them."""

import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from smke_jax.reporting import html
from smke_jax.reporting.evaluations import Evaluation

MOST_CLASSES = 20  # of a whole matrix; of more, the pairs that are confused most often are listed
MOST_PAIRS = 12
MOST_LETTERS = 40  # of a class in the head of a matrix
STRONGEST = 55  # percent of the colour where all images of a class are: text stays readable on it


class Confusion(NamedTuple):
    """names: C classes; counts: (C, C), how many of the class of the row were taken for that of the column.

    unit: what was counted, for people
    """

    names: Sequence[str]
    counts: np.ndarray
    unit: str = "images"

    @property
    def shares(self) -> np.ndarray:
        """(C, C) counts divided by the sum of the row; 0 for a class of which there are none."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)


def read_confusions(evaluations: Iterable[Evaluation], problems: list[str]) -> dict[str, tuple[int, Confusion]]:
    """{evaluator: (step, its confusion matrix)} of those of `evaluations`, newest first, that classify."""
    newest: dict[str, Evaluation] = {}
    for evaluation in evaluations:
        newest.setdefault(evaluation.name, evaluation)
    read = {name: (x.step, _read_confusion(x, problems)) for name, x in sorted(newest.items())}
    return {name: (step, found) for name, (step, found) in read.items() if found is not None}


def _read_confusion(evaluation: Evaluation, problems: list[str]) -> Confusion | None:
    """None where it is no classification, or cannot be read, which becomes a line of `problems`."""
    names = evaluation.record.get("classes")
    if not names:
        return None
    try:
        with np.load(evaluation.arrays) as arrays:
            label, predicted = (arrays[name].astype(np.int64) for name in ("label", "predicted"))
        counts = np.zeros((len(names), len(names)), np.int64)
        np.add.at(counts, (label, predicted), 1)
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile, zlib.error):
        problems.append(f"{evaluation.arrays} is damaged or missing: its confusion matrix is left out")
        return None
    # Labelled sentences have samples in their record.
    return Confusion([str(name) for name in names], counts, "rows" if "samples" in evaluation.record else "images")


def confusion_rows(found: Confusion) -> tuple[Sequence[str], list[list[str]]]:
    """(heads, rows) of a table of text: the matrix, or of many classes the pairs that are confused most often."""
    names, counts = found.names, found.counts
    if len(names) > MOST_CLASSES:
        wrong = counts - np.diag(np.diag(counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
        pairs = [divmod(int(place), len(names)) for place in order if wrong.flat[place]]
        rows = [[names[a], names[b], str(counts[a, b]), f"{100 * found.shares[a, b]:.1f} %"] for a, b in pairs]
        return ("class", "taken for", found.unit, "of the class"), rows
    right = 100 * np.diag(found.shares)
    rows = [[name, *map(str, own), f"{share:.1f} %"] for name, own, share in zip(names, counts, right, strict=True)]
    return ("class", *names, "right"), rows


def confusion_title(name: str, step: int) -> str:
    """What the table of an evaluator is called."""
    return f"Which classes are confused ({name}, step {step:,})"


def confusion_section(name: str, step: int, found: Confusion) -> str:
    """The same as a titled box; the colour of a cell is the stronger, the larger its share of the row.

    Every cell has its number: the matrix can be read in print, without colours and by a screen reader.
    """
    heads, rows = confusion_rows(found)
    title = confusion_title(name, step)
    if len(found.names) > MOST_CLASSES:
        return html.section(title, html.table(heads, rows, said=True), note="The pairs that are confused most often.")
    # Names of classes stand upright, so that all columns are as narrow as their numbers.
    names = "".join(f'<th scope="col"><span>{_short(text)}</span></th>' for text in heads[1:-1])
    head = f'<th scope="col">{heads[0]}</th>{names}<th scope="col">{heads[-1]}</th>'
    lines = []
    for number, (row, shares) in enumerate(zip(rows, found.shares, strict=True)):
        cells = "".join(
            f'<td style="background: color-mix(in srgb, var(--series0) {STRONGEST * share:.0f}%, transparent)'
            f'{"; font-weight: 600" if column == number else ""}">{text}</td>'
            for column, (text, share) in enumerate(zip(row[1:-1], shares, strict=True))
        )
        lines.append(f'<tr><th scope="row">{_short(row[0])}</th>{cells}<td>{row[-1]}</td></tr>')
    table = (
        f'<div class="scroll"><table class="confusion"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    return html.section(
        title, table, note=f"Rows are the true classes, columns those that were found; {found.unit} counted."
    )


def _short(name: str) -> str:
    """The name of a class, escaped; the rest of a very long one is seen under the pointer."""
    if len(name) <= MOST_LETTERS:
        return html.escape(name)
    return f'<abbr title="{html.escape(name)}">{html.escape(name[:MOST_LETTERS])}…</abbr>'


def predictions_sections(examples: Mapping[str, Sequence[tuple]], at: str) -> list[str]:
    """What 'predictions' and 'mistakes' of `examples` show; `at` ends the titles."""
    titles = {"predictions": "Images and the classes found for them", "mistakes": "The surest mistakes"}
    return [_predictions(title + at, examples[kind]) for kind, title in titles.items()]


def _predictions(title: str, examples: Sequence[tuple]) -> str:
    """Images with their classes and those found for them: (image, class, [(class found, is right), …])."""
    rows = []
    for image, own, found in examples:
        classes = "".join(html.caption_item(text, is_right) for text, is_right in found)
        shown = html.hit(image, None, own, alt=f"image of the class {own}")
        rows.append(f'<div class="row pair">{shown}<ol>{classes}</ol></div>')
    note = "The class of an image stands below it; beside it are the classes that were found, the best first."
    return html.section(title, *rows, note=note) if rows else ""
