"""How often the class of a row is found: top-1 and top-5 over a whole split."""

import functools
import math

import numpy as np

from smke_jax.errors import UserError
from smke_jax.evaluators.base import Encode, Evaluator, Figures
from smke_jax.evaluators.top_k import finite_rows
from smke_jax.tasks.base import Split, Task

AT = (1, 5)  # top-5 says nothing of five classes or fewer
Z95 = 1.959964  # the normal distribution has 95 % of its mass within so many standard deviations
SHOWN, SHOWN_CLASSES = 8, 3  # images in a report, and classes for each


def accuracy(*, split: str = "dev", logits: str = "class/logits", every: int = 0) -> Evaluator:
    """Percent of the rows of `split` whose class is the first, or one of the first five, by `logits`.

    The split has the facts 'labels' (N,) and may have 'classes', their names.  Checkpoints are ranked by top-1.
    """

    def run(encode: Encode, task: Task, on: Split) -> Figures:
        return accuracy_figures(encode((logits,), on)[logits], on, f"{on.name}, accuracy by {logits}")

    return Evaluator((logits,), run, split, every, best="top1")


def accuracy_figures(scores: np.ndarray, on: Split, protocol: str) -> Figures:
    """What `scores` (N, C) find of the labels of `on`: exact counts over all N rows, with 95 % intervals.

    A report draws the confusion matrix of the arrays 'label' and 'predicted' (N,).  Raises UserError for a split
    without labels, for labels that are no column of `scores`, and for scores that are not finite.
    """
    labels, names = labels_of(on, scores.shape[1])
    ranks = label_ranks(finite_rows(scores, "class scores"), labels)
    found = {f"top{k}": 100 * float(np.mean(ranks <= k)) for k in AT if k < scores.shape[1] or k == 1}
    intervals = {name: share_interval(round(value / 100 * len(ranks)), len(ranks)) for name, value in found.items()}
    record = {"protocol": protocol, **found, "rows": len(ranks), "ci95": intervals, "classes": names}
    skipped = on.facts.get("skipped", 0)
    record |= {"skipped": skipped} if skipped else {}
    unread = f", {skipped} left out that cannot be read" if skipped else ""
    lines = [
        f"{name}  {value:.2f} ({intervals[name][0]:.2f} to {intervals[name][1]:.2f})" for name, value in found.items()
    ]
    examples = functools.partial(_examples, scores, labels, names, on) if "pixels" in on.facts else None
    arrays = {"label": labels.astype(np.int32), "predicted": np.argmax(scores, axis=1).astype(np.int32)}
    return Figures(found, record, arrays, "\n".join([f"{protocol}, {len(ranks)} rows{unread}", *lines]), examples)


def _examples(scores: np.ndarray, labels: np.ndarray, names: list[str], on: Split) -> dict:
    """Rows drawn at random, the same at every evaluation, and the wrong ones whose first class leads by the most."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :SHOWN_CLASSES]
    drawn = np.random.default_rng(0).choice(len(labels), min(SHOWN, len(labels)), replace=False)
    lead = np.max(scores, axis=1) - np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    surest = [i for i in np.argsort(-lead, kind="stable")[:SHOWN] if best[i, 0] != labels[i]]

    def shown(row):
        return on.facts["pixels"](int(row)), names[labels[row]], [(names[y], bool(y == labels[row])) for y in best[row]]

    return {"predictions": [shown(row) for row in drawn], "mistakes": [shown(row) for row in surest]}


def labels_of(on: Split, classes: int) -> tuple[np.ndarray, list[str]]:
    """(labels (N,) int64, names of the classes) of a split; raises UserError where they do not fit `classes` scores."""
    if "labels" not in on.facts:
        raise UserError(f"{on.name} has no labels: accuracy is of tasks of labelled rows alone")
    labels = np.asarray(on.facts["labels"], np.int64)
    names = [str(name) for name in on.facts.get("classes", range(classes))]
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(f"{on.name} has labels from {labels.min()} to {labels.max()}, and there are {classes} scores")
    return labels, names


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rank (from 1) of each row's label in a stable descending sort of its scores.  (N, C), (N,) -> (N,)."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    return 1 + np.sum((scores > own) | ((scores == own) & earlier), axis=1)


def share_interval(hits: int, rows: int) -> list[float]:
    """[low, high] of the 95 % interval of Wilson (1927) for `hits` of `rows` rows, in percent.

    It has a width at 0 and 100 % too, where a bootstrap interval has none.
    """
    share, spread = hits / rows, Z95**2 / rows
    centre = share + spread / 2
    width = math.sqrt(spread * share * (1 - share) + spread**2 / 4)
    return [100 * max(0.0, min(1.0, (centre + side * width) / (1 + spread))) for side in (-1, 1)]
