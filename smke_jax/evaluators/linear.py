"""Linear classifiers on stored features: ridge regression in closed form, and multinomial logistic regression."""

from collections.abc import Sequence

import numpy as np

PENALTIES = tuple(10.0**k for k in range(-4, 3))
FOLDS = 5


def standardised(x: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x (N, D), other (M, D) by the mean and the standard deviation of x, float64; a constant channel becomes 0."""
    x, other = (np.asarray(part, np.float64) for part in (x, other))
    mean, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 1e-8, spread, np.inf)
    return (x - mean) / scale, (other - mean) / scale


def ridge(
    x: np.ndarray, labels: np.ndarray, other: np.ndarray, classes: int, penalties: Sequence[float] = PENALTIES
) -> tuple[np.ndarray, float]:
    """(scores (M, C) of `other`, penalty) of a ridge regression from standardised x (N, D) to the classes as 0 and 1.

    The penalty, relative to the number of rows, is the one of the least squared error of each row by a regression on
    all other rows.  That error is exact and needs no second fit: residual / (1 - leverage) (Allen 1974, PRESS).
    """
    x, other = standardised(x, other)
    targets = np.eye(classes)[labels]
    mean = targets.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)
    values, rotated = np.maximum(values, 0), x @ vectors
    right, squared = rotated.T @ (targets - mean), np.square(rotated)
    best = (np.inf, penalties[0], right)
    for penalty in penalties:
        shrunk = 1 / (values + penalty * len(x))
        weights = shrunk[:, None] * right
        leverage = np.minimum(squared @ shrunk + 1 / len(x), 1 - 1e-9)  # 1/N is that of the mean
        error = np.mean(np.square((targets - mean - rotated @ weights) / (1 - leverage)[:, None]))
        best = min(best, (error, penalty, weights), key=lambda found: found[0])
    _, penalty, weights = best
    return other @ vectors @ weights + mean, penalty


def logistic(
    x: np.ndarray, labels: np.ndarray, other: np.ndarray, classes: int, penalties: Sequence[float] = PENALTIES
) -> tuple[np.ndarray, float]:
    """(logits (M, C) of `other`, penalty) of multinomial logistic regression from standardised x (N, D).

    It minimises the mean cross-entropy plus penalty / 2 · Σ weights², biases free, by L-BFGS.  The penalty is chosen by
    cross-validation in fifths of the rows, which are drawn with a fixed seed: from the highest downwards, until the
    cross-entropy rises.
    """
    fold = np.random.default_rng(0).permutation(len(x)) % FOLDS
    parts = [(fold != number, *standardised(x[fold != number], x[fold == number])) for number in range(FOLDS)]
    starts: list[np.ndarray | None] = [None] * FOLDS
    penalty, least = max(penalties), np.inf
    for candidate in sorted(penalties, reverse=True) if len(penalties) > 1 else ():
        total = 0.0
        for number, (own, part, rest) in enumerate(parts):
            starts[number] = fit_logistic(part, labels[own], classes, candidate, starts[number])
            total += len(rest) * cross_entropy(scores_of(rest, starts[number]), labels[~own])
        if total >= least:
            break
        penalty, least = candidate, total
    x, other = standardised(x, other)
    return scores_of(other, fit_logistic(x, labels, classes, penalty)), penalty


def fit_logistic(
    x: np.ndarray, labels: np.ndarray, classes: int, penalty: float, start: np.ndarray | None = None
) -> np.ndarray:
    """Weights (D + 1, C), the biases last, at the minimum of `logistic`'s objective on x (N, D)."""
    from scipy.optimize import minimize  # slow to import, and every config imports the evaluators

    shape = x.shape[1] + 1, classes
    targets = np.eye(classes)[labels]

    def objective(flat):
        weights = flat.reshape(shape)
        logits = scores_of(x, weights)
        log_p = logits - logits.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        loss = -np.sum(targets * log_p) / len(x) + penalty / 2 * np.sum(np.square(weights[:-1]))
        slope = (np.exp(log_p) - targets) / len(x)
        gradient = np.concatenate([x.T @ slope + penalty * weights[:-1], slope.sum(axis=0, keepdims=True)])
        return loss, gradient.ravel()

    begin = np.zeros(shape) if start is None else start
    found = minimize(objective, begin.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return found.x.reshape(shape)


def scores_of(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """x (N, D), weights (D + 1, C) -> (N, C)."""
    return x @ weights[:-1] + weights[-1]


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy of logits (N, C) with labels (N,)."""
    logits = logits - logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - own))


METHODS = {"logistic": logistic, "ridge": ridge}
