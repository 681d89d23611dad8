"""How far a network's classes or scores agree with the labels of a whole split, by metrics of one's choice."""

from collections.abc import Sequence

import numpy as np

from smke_jax.errors import UserError, nearest
from smke_jax.evaluators.accuracy import labels_of
from smke_jax.evaluators.base import Encode, Evaluator, Figures
from smke_jax.evaluators.label_metrics import OF_CLASSES, OF_SCORES, class_interval, confusion, score_interval
from smke_jax.evaluators.top_k import finite_rows
from smke_jax.tasks.base import Split, Task

SHOWN = 5  # rows of right and of wrong predictions that the record holds
BINARY = ("f1",)


def labels(
    *,
    split: str = "dev",
    of: str = "class/logits",
    metrics: tuple[str, ...] = ("accuracy",),
    every: int = 0,
    best: bool = True,
) -> Evaluator:
    """`metrics` of `of`, the logits (N, C) of classes or a score (N, 1), against the labels of all rows of `split`.

    metrics: accuracy | f1 | matthews of classes, pearson | spearman of scores; all in percent
    best:    checkpoints are ranked by the first of them
    """
    _check(metrics)

    def run(encode: Encode, task: Task, on: Split) -> Figures:
        return label_figures(encode((of,), on)[of], on, metrics)

    return Evaluator((of,), run, split, every, best=metrics[0] if best else "")


def label_figures(outputs: np.ndarray, on: Split, metrics: Sequence[str]) -> Figures:
    """What `outputs`, (N, C) logits or (N, 1) scores, say of the labels of `on`, with 95 % intervals.

    The record of classes has their confusion matrix, a row for each right class.  Where the split has sentences, it
    also has the first rows that are right and that are wrong; of scores the best and the worst.
    Raises UserError for metrics of another kind of label, a split without labels, and outputs that are not finite.
    """
    _check(metrics)
    finite_rows(outputs, "predictions")
    scored = metrics[0] in OF_SCORES
    if "labels" not in on.facts:
        raise UserError(f"{on.name} has no labels: give the split of a task of labelled rows")
    if scored != (np.asarray(on.facts["labels"]).dtype.kind == "f"):
        known = ", ".join(OF_CLASSES if scored else OF_SCORES)
        raise UserError(f"the labels of {on.name} are {'classes' if scored else 'scores'}: measure {known}")
    found, intervals, more, arrays, error = (_scores if scored else _classes)(outputs, on, metrics)
    record = {"protocol": f"{on.name}, {len(outputs)} rows, percent", **found, "rows": len(outputs), "ci95": intervals}
    record |= more | _samples(on, arrays, error)
    lines = [f"{name:10}{x:6.1f} ({intervals[name][0]:.1f} to {intervals[name][1]:.1f})" for name, x in found.items()]
    return Figures(found, record, arrays, "\n".join([record["protocol"], *lines]))


def _check(metrics: Sequence[str]) -> None:
    known = {**OF_CLASSES, **OF_SCORES}
    for name in metrics:
        if name not in known:
            raise UserError(f"there is no metric {name!r} among {', '.join(known)}{nearest(name, list(known))}")
    if not metrics or len({name in OF_SCORES for name in metrics}) > 1:
        raise UserError(
            f"metrics are {', '.join(metrics) or 'empty'}: give some of {', '.join(OF_CLASSES)}, or some of "
            f"{', '.join(OF_SCORES)}"
        )


def _classes(outputs: np.ndarray, on: Split, metrics: Sequence[str]):
    right, names = labels_of(on, outputs.shape[1])
    if outputs.shape[1] != 2 and (given := [name for name in metrics if name in BINARY]):
        raise UserError(f"{given[0]} is of two classes, {on.name} has {outputs.shape[1]}: measure accuracy or matthews")
    said = np.argmax(outputs, axis=1)
    counts = confusion(right, said, outputs.shape[1])
    found = {name: OF_CLASSES[name](counts) for name in metrics}
    intervals = {name: class_interval(OF_CLASSES[name], counts) for name in metrics}
    arrays = {"label": right.astype(np.int32), "predicted": said.astype(np.int32)}
    return found, intervals, {"classes": names, "confusion": counts.tolist()}, arrays, right != said


def _scores(outputs: np.ndarray, on: Split, metrics: Sequence[str]):
    right, said = np.asarray(on.facts["labels"]), outputs[:, 0]
    found = {name: OF_SCORES[name](right, said) for name in metrics}
    intervals = {name: score_interval(OF_SCORES[name], right, said) for name in metrics}
    return found, intervals, {}, {"label": right, "predicted": said}, np.abs(right - said)


def _samples(on: Split, arrays: dict[str, np.ndarray], error: np.ndarray) -> dict:
    """{'samples': {'right': rows, 'wrong': rows}} with sentences, label and prediction; {} of a split without them."""
    if "sentences" not in on.facts:
        return {}
    order = np.argsort(error, kind="stable")
    names = on.facts.get("classes") or None

    def row(i):
        values = {key: names[x[i]] if names else round(float(x[i]), 3) for key, x in arrays.items()}
        return {"sentences": [column[i] for column in on.facts["sentences"]], **values}

    chosen = {"right": order[:SHOWN], "wrong": order[::-1][:SHOWN]}
    if error.dtype == bool:
        chosen = {"right": order[:SHOWN][~error[order[:SHOWN]]], "wrong": np.flatnonzero(error)[:SHOWN]}
    return {"samples": {kind: [row(i) for i in rows.tolist()] for kind, rows in chosen.items()}}
