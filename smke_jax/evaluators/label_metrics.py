"""How far predicted classes or scores agree with the right ones, over a whole split: GLUE's metrics, in percent.

Metrics of classes are functions of the confusion matrix, (C, C) counts with the right class along the first axis.
Metrics of scores are functions of two (N,) arrays.  Where a metric has no value, as a correlation with a constant, it
is 0, as GLUE's own script reports.
"""

from collections.abc import Callable

import numpy as np

from smke_jax.evaluators.accuracy import share_interval
from smke_jax.evaluators.bootstrap import interval95

RESAMPLES = 1000


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) int64: how often a row of class i was said to be j.  labels, predicted: (N,) integers below `classes`."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def accuracy(counts: np.ndarray) -> float:
    """Share of rows whose class is found."""
    return 100 * float(np.trace(counts) / counts.sum())


def f1(counts: np.ndarray) -> float:
    """Harmonic mean of precision and recall of class 1, of two.  Source: Wang et al. 2019 (MRPC, QQP)."""
    right, wrong = counts[1, 1], counts[0, 1] + counts[1, 0]
    return 100 * float(2 * right / (2 * right + wrong)) if right else 0.0


def matthews(counts: np.ndarray) -> float:
    """Correlation of right and predicted classes, -100 to 100, also of more than two.

    Source: Matthews 1975; for several classes Gorodkin 2004.
    """
    counts = counts.astype(np.float64)
    total, right = counts.sum(), np.trace(counts)
    actual, said = counts.sum(1), counts.sum(0)
    spread = (total**2 - said @ said) * (total**2 - actual @ actual)
    return 100 * float((right * total - actual @ said) / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Linear correlation of two (N,) arrays."""
    from scipy.stats import pearsonr  # slow to import

    return _correlation(pearsonr, labels, predicted)


def spearman(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Correlation of the ranks of two (N,) arrays; equal values share their mean rank."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, predicted)


def _correlation(of: Callable, labels: np.ndarray, predicted: np.ndarray) -> float:
    if np.ptp(labels) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return 100 * float(of(labels.astype(np.float64), predicted.astype(np.float64)).statistic)


OF_CLASSES = {"accuracy": accuracy, "f1": f1, "matthews": matthews}
OF_SCORES = {"pearson": pearson, "spearman": spearman}


def class_interval(metric: Callable, counts: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """[low, high] of the 95 % interval of a metric of classes: of accuracy, a share, Wilson's; of the others bootstrap.

    The confusion matrix of N rows that are drawn with replacement is multinomial: no row has to be drawn for it.
    """
    rows = int(counts.sum())
    if metric is accuracy:
        return share_interval(int(np.trace(counts)), rows)
    drawn = np.random.default_rng(seed).multinomial(rows, counts.ravel() / rows, resamples)
    return interval95(np.array([metric(own.reshape(counts.shape)) for own in drawn])).tolist()


def score_interval(
    metric: Callable, labels: np.ndarray, predicted: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> list[float]:
    """[low, high] of the 95 % bootstrap interval of a metric of scores, of rows drawn with replacement."""
    rng, count = np.random.default_rng(seed), len(labels)
    rows = rng.integers(0, count, (resamples, count))
    return interval95(np.array([metric(labels[own], predicted[own]) for own in rows])).tolist()
