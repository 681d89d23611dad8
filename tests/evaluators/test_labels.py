"""Metrics of labels against plain forms and scipy; the evaluator counts every row once and says what it cannot do."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from smke_jax.errors import UserError
from smke_jax.evaluators.accuracy import share_interval
from smke_jax.evaluators.encode import Encoder
from smke_jax.evaluators.label_metrics import (
    accuracy,
    class_interval,
    confusion,
    f1,
    matthews,
    pearson,
    score_interval,
    spearman,
)  # fmt: skip
from smke_jax.evaluators.labels import label_figures, labels
from smke_jax.parallel.mesh import make_mesh
from smke_jax.passes.base import Pass
from smke_jax.tasks.base import Column, Split

RNG = np.random.default_rng(0)
RIGHT = RNG.integers(0, 2, 97)
SAID = np.where(RNG.random(97) < 0.7, RIGHT, RNG.integers(0, 2, 97))


def ranks(values):
    """Mean ranks, one value after the other."""
    return [sum(y < x for y in values) + (1 + sum(y == x for y in values)) / 2 for x in values]


def correlation(a, b):
    mean_a, mean_b = math.fsum(a) / len(a), math.fsum(b) / len(b)
    da, db = [x - mean_a for x in a], [x - mean_b for x in b]
    return sum(x * y for x, y in zip(da, db)) / math.sqrt(sum(x * x for x in da) * sum(y * y for y in db))


def test_metrics_of_classes_are_those_of_their_definitions():
    counts = confusion(RIGHT, SAID, 2)
    assert counts.tolist() == [[sum((RIGHT == i) & (SAID == j)) for j in (0, 1)] for i in (0, 1)]
    assert accuracy(counts) == pytest.approx(100 * sum(a == b for a, b in zip(RIGHT, SAID)) / 97)
    precision = sum(RIGHT[SAID == 1] == 1) / sum(SAID == 1)
    recall = sum(SAID[RIGHT == 1] == 1) / sum(RIGHT == 1)
    assert f1(counts) == pytest.approx(100 * 2 * precision * recall / (precision + recall))
    # Of two classes Matthews' coefficient is the correlation of the two columns of zeros and ones.
    assert matthews(counts) == pytest.approx(100 * correlation(RIGHT.tolist(), SAID.tolist()))


def test_matthews_of_several_classes_is_gorodkins():
    """From the covariances of indicator columns, as the paper defines it."""
    right, said = RNG.integers(0, 4, 60), RNG.integers(0, 4, 60)
    said[:30] = right[:30]
    x, y = np.eye(4)[said], np.eye(4)[right]
    cov = lambda a, b: sum(np.cov(a[:, k], b[:, k], bias=True)[0, 1] for k in range(4))  # noqa: E731
    want = cov(x, y) / math.sqrt(cov(x, x) * cov(y, y))
    assert matthews(confusion(right, said, 4)) == pytest.approx(100 * want)


def test_metrics_of_scores_are_those_of_their_definitions():
    a, b = np.round(RNG.normal(size=40), 1), np.round(RNG.normal(size=40), 1)  # with ties
    b = np.round(a + b, 1)
    assert pearson(a, b) == pytest.approx(100 * correlation(a.tolist(), b.tolist()))
    assert spearman(a, b) == pytest.approx(100 * correlation(ranks(a), ranks(b)))


def test_what_has_no_value_is_0():
    always = confusion(RIGHT, np.zeros_like(RIGHT), 2)
    assert matthews(always) == 0 and f1(always) == 0
    assert pearson(RIGHT, np.ones(97)) == spearman(np.ones(97), RIGHT) == 0


def test_intervals_are_those_of_rows_drawn_again():
    counts, rng = confusion(RIGHT, SAID, 2), np.random.default_rng(5)
    drawn = [rng.integers(0, 97, 97) for _ in range(3000)]
    plain = np.percentile([matthews(confusion(RIGHT[i], SAID[i], 2)) for i in drawn], (2.5, 97.5))
    np.testing.assert_allclose(class_interval(matthews, counts, 3000), plain, atol=2.5)
    scores = RIGHT + RNG.normal(size=97)
    plain = np.percentile([100 * stats.pearsonr(RIGHT[i], scores[i])[0] for i in drawn], (2.5, 97.5))
    np.testing.assert_allclose(score_interval(pearson, RIGHT, scores, 3000), plain, atol=2)


# ---- the evaluator


def split(given, **facts) -> Split:
    """Rows that a network multiplies by 2."""
    values = np.asarray(given, np.float32)
    return Split("made up", "x", {"x": Column(len(values), lambda rows: values[rows])}, facts)


def double(batch_size: int, devices: int) -> Encoder:
    doubling = Pass(
        "double", (), ("x",), ("class/logits",), lambda p, a, key, train: {"class/logits": jnp.asarray(a["x"]) * 2}
    )
    return Encoder(lambda names, columns: (doubling,), lambda p: {}, make_mesh(devices), batch_size=batch_size)


@pytest.mark.parametrize(("batch_size", "devices"), [(8, 1), (8, 8), (97, 1), (200, 2)])
def test_rows_of_a_padded_last_batch_count_once(batch_size, devices):
    logits = np.stack([1 - SAID, SAID], 1) + RNG.normal(size=(97, 2)) * 0.1
    on = split(logits, labels=RIGHT.astype(np.int32))
    evaluator = labels(metrics=("accuracy", "f1", "matthews"))
    figures = evaluator.run(double(batch_size, devices), None, on)
    counts = confusion(RIGHT, SAID, 2)
    assert figures.record["rows"] == 97 and figures.record["confusion"] == counts.tolist()
    assert figures.scalars == {"accuracy": accuracy(counts), "f1": f1(counts), "matthews": matthews(counts)}
    assert evaluator.best == "accuracy" and evaluator.rank(figures) == accuracy(counts)
    assert figures.record["ci95"]["accuracy"] == share_interval(int((RIGHT == SAID).sum()), 97)
    low, high = figures.record["ci95"]["f1"]
    assert low < f1(counts) < high and json.dumps(figures.record)


def test_scores_with_the_texts_of_the_best_and_the_worst():
    texts = (["a", "b", "c"], ["d", "e", "f"])
    on = split([[0.5], [1.0], [2.0]], labels=np.float32([1.0, 2.5, 4.0]), sentences=texts, classes=())
    figures = label_figures(2 * on.columns["x"].read([0, 1, 2]), on, ("pearson", "spearman"))
    assert figures.scalars["spearman"] == 100 and 98 < figures.scalars["pearson"] < 100
    samples = figures.record["samples"]
    assert samples["wrong"][0] == {"sentences": ["b", "e"], "label": 2.5, "predicted": 2.0} == samples["right"][-1]
    classes = label_figures(
        np.eye(3), split(np.eye(3), labels=np.array([0, 1, 0]), sentences=texts[:1], classes="xyz"), ("accuracy",)
    )
    samples = {kind: [(x["sentences"], x["label"], x["predicted"]) for x in rows]
               for kind, rows in classes.record["samples"].items()}  # fmt: skip
    assert samples == {"right": [(["a"], "x", "x"), (["b"], "y", "y")], "wrong": [(["c"], "x", "z")]}


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match="there is no metric 'mathews' among accuracy, .*: did you mean matthews"):
        labels(metrics=("mathews",))
    with pytest.raises(UserError, match="metrics are accuracy, pearson: give some of accuracy, f1, matthews, or some"):
        labels(metrics=("accuracy", "pearson"))
    with pytest.raises(UserError, match="metrics are empty"):
        labels(metrics=())
    with pytest.raises(UserError, match="the labels of made up are classes: measure accuracy, f1, matthews"):
        label_figures(np.eye(2), split(np.eye(2), labels=np.array([0, 1])), ("spearman",))
    with pytest.raises(UserError, match="the labels of made up are scores: measure pearson, spearman"):
        label_figures(np.eye(2), split(np.eye(2), labels=np.float32([0, 1])), ("accuracy",))
    with pytest.raises(UserError, match="f1 is of two classes, made up has 3: measure accuracy or matthews"):
        label_figures(np.eye(3), split(np.eye(3), labels=np.arange(3)), ("accuracy", "f1"))
    with pytest.raises(UserError, match="made up has no labels"):
        label_figures(np.eye(3), split(np.eye(3)), ("accuracy",))
    with pytest.raises(UserError, match="predictions: 1 of 2 rows hold NaN"):
        label_figures(np.float32([[1, 0], [np.nan, 1]]), split(np.eye(2), labels=np.array([0, 1])), ("accuracy",))
