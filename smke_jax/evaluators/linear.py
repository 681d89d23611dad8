"""Linear classifiers on stored features: ridge regression in closed form, and multinomial logistic regression."""

import logging
from collections.abc import Sequence

import numpy as np

from smke_jax.errors import UserError

log = logging.getLogger("smke_jax")

PENALTIES = tuple(10.0**k for k in range(-4, 3))
FOLDS = 5
STEPS = 1000  # of L-BFGS
CHUNK = 8192
LARGEST = 10**9  # numbers of features that a probe is fitted to: 8 GB, and three copies


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
    all other rows.  That error is exact and needs no second fit: residual / (1 - leverage) (Allen 1974, PRESS).  Of
    arrays (N, C), parts of CHUNK rows are held at a time.
    Raises UserError for fewer than two rows, and for features of more than LARGEST numbers.
    """
    _check_size(x, 2)
    x, other = standardised(x, other)
    mean = np.bincount(labels, minlength=classes) / len(x)
    values, vectors = np.linalg.eigh(x.T @ x)
    values, rotated = np.maximum(values, 0), x @ vectors
    # The sums of the rows of each class: x.T @ (one-hot - mean), of which the mean falls out as x is centred.
    right = np.stack([rotated[labels == label].sum(axis=0) for label in range(classes)], axis=1)
    best = (np.inf, penalties[0], right)
    for penalty in penalties:
        shrunk = 1 / (values + penalty * len(x))
        weights, error = shrunk[:, None] * right, 0.0
        for start in range(0, len(x), CHUNK):
            rows, own = rotated[start : start + CHUNK], labels[start : start + CHUNK]
            residual = -mean - rows @ weights
            residual[np.arange(len(rows)), own] += 1
            leverage = np.minimum(np.square(rows) @ shrunk + 1 / len(x), 1 - 1e-9)  # 1/N is that of the mean
            error += np.sum(np.square(residual / (1 - leverage)[:, None]))
        best = min(best, (error, penalty, weights), key=lambda found: found[0])
    _, penalty, weights = best
    _tell_end(penalty, penalties)
    return other @ vectors @ weights + mean, penalty


def logistic(
    x: np.ndarray, labels: np.ndarray, other: np.ndarray, classes: int, penalties: Sequence[float] = PENALTIES
) -> tuple[np.ndarray, float]:
    """(logits (M, C) of `other`, penalty) of multinomial logistic regression from standardised x (N, D).

    It minimises the mean cross-entropy plus penalty / 2 · Σ weights², biases free, by L-BFGS.  The penalty is chosen by
    cross-validation in fifths of the rows, which are drawn with a fixed seed: from the highest downwards, until the
    cross-entropy rises.  Fewer rows than five are left out one by one.  One part is held at a time.
    Raises UserError for fewer than two rows, and for features of more than LARGEST numbers.
    """
    _check_size(x, 2)
    folds = min(FOLDS, len(x))
    fold = np.random.default_rng(0).permutation(len(x)) % folds
    starts: list[np.ndarray | None] = [None] * folds
    penalty, least = max(penalties), np.inf
    for candidate in sorted(penalties, reverse=True) if len(penalties) > 1 else ():
        total = 0.0
        for number in range(folds):
            own = fold != number
            part, rest = standardised(x[own], x[~own])
            starts[number] = fit_logistic(part, labels[own], classes, candidate, starts[number])
            total += len(rest) * cross_entropy(scores_of(rest, starts[number]), labels[~own])
        if total >= least:
            break
        penalty, least = candidate, total
    _tell_end(penalty, penalties)
    x, other = standardised(x, other)
    return scores_of(other, fit_logistic(x, labels, classes, penalty)), penalty


def fit_logistic(
    x: np.ndarray, labels: np.ndarray, classes: int, penalty: float, start: np.ndarray | None = None
) -> np.ndarray:
    """Weights (D + 1, C), the biases last, at the minimum of `logistic`'s objective on x (N, D).

    A warning says where STEPS steps do not reach it.
    """
    from scipy.optimize import minimize  # slow to import, and every config imports the evaluators

    shape, rows = (x.shape[1] + 1, classes), np.arange(len(x))

    def objective(flat):
        weights = flat.reshape(shape)
        log_p = scores_of(x, weights)
        log_p -= log_p.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        loss = -np.mean(log_p[rows, labels]) + penalty / 2 * np.sum(np.square(weights[:-1]))
        slope = np.exp(log_p, out=log_p)
        slope[rows, labels] -= 1
        slope /= len(x)
        gradient = np.concatenate([x.T @ slope + penalty * weights[:-1], slope.sum(axis=0, keepdims=True)])
        return loss, gradient.ravel()

    begin = np.zeros(shape) if start is None else start
    found = minimize(objective, begin.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    if not found.success:
        log.warning("a logistic probe with penalty %g has not converged after %d steps", penalty, found.nit)
    return found.x.reshape(shape)


def _check_size(x: np.ndarray, least: int) -> None:
    if len(x) < least:
        raise UserError(f"a probe needs {least} rows to be fitted to, there is {len(x)}: give more")
    if x.size > LARGEST:
        raise UserError(
            f"a probe of {len(x):,} rows of {x.shape[1]:,} channels would not fit into memory: give fewer rows, or a "
            f"smaller feature ({LARGEST:,} numbers at most)"
        )


def _tell_end(penalty: float, penalties: Sequence[float]) -> None:
    if len(penalties) > 1 and penalty in (min(penalties), max(penalties)):
        log.warning("the probe's penalty is %g, at the end of those that were tried: another may be better", penalty)


def scores_of(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """x (N, D), weights (D + 1, C) -> (N, C)."""
    return x @ weights[:-1] + weights[-1]


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy of logits (N, C) with labels (N,)."""
    logits = logits - logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - own))


METHODS = {"logistic": logistic, "ridge": ridge}
