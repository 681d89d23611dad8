"""Linear classifiers on features: ridge against its definition, logistic regression against PyTorch."""

import numpy as np
import pytest
import torch

from smke_jax.evaluators.linear import (
    cross_entropy,
    fit_logistic,
    logistic,
    ridge,
    scores_of,
    standardised,
)  # fmt: skip

RNG = np.random.default_rng(0)
CLASSES = 3
CENTRES = RNG.normal(size=(CLASSES, 5))


def blobs(count):
    labels = np.arange(count) % CLASSES
    x = CENTRES[labels] + 0.9 * RNG.normal(size=(count, 5))
    return np.concatenate([x, np.ones((count, 1))], axis=1).astype(np.float32), labels  # and a constant channel


X, Y = blobs(40)
OTHER, THEIRS = blobs(60)


def test_channels_are_standardised_by_the_training_rows():
    x, other = standardised(X, OTHER)
    np.testing.assert_allclose(x[:, :5].mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(x[:, :5].std(0), 1)
    assert np.all(x[:, 5] == 0) and np.all(other[:, 5] == 0), "a constant channel says nothing"
    np.testing.assert_allclose(other[:, 0], (OTHER[:, 0].astype(float) - X[:, 0].mean()) / X[:, 0].std(), rtol=1e-4)


@pytest.mark.parametrize("penalty", (1e-3, 0.1, 3.0))
def test_ridge_is_what_the_normal_equations_give(penalty):
    x, other = standardised(X, OTHER)
    targets = np.eye(CLASSES)[Y]
    mean = targets.mean(0)
    weights = np.linalg.solve(x.T @ x + penalty * len(x) * np.eye(6), x.T @ (targets - mean))
    scores, chosen = ridge(X, Y, OTHER, CLASSES, (penalty,))
    assert chosen == penalty
    np.testing.assert_allclose(scores, other @ weights + mean, rtol=1e-6, atol=1e-8)


def test_its_penalty_is_the_best_when_every_row_is_left_out_in_turn():
    penalties = (1e-4, 1e-2, 0.1, 1.0, 10.0)
    x, _ = standardised(X, X)
    targets, errors = np.eye(CLASSES)[Y], []
    for penalty in penalties:
        total = 0.0
        for i in range(len(x)):
            kept = np.arange(len(x)) != i
            design = np.concatenate([x[kept], np.ones((len(x) - 1, 1))], axis=1)
            extra = penalty * len(x) * np.diag([1.0] * 6 + [0.0])
            weights = np.linalg.solve(design.T @ design + extra, design.T @ targets[kept])
            total += np.sum((targets[i] - np.append(x[i], 1) @ weights) ** 2)
        errors.append(total)
    assert ridge(X, Y, OTHER, CLASSES, penalties)[1] == penalties[int(np.argmin(errors))]
    assert 0 < int(np.argmin(errors)) < len(penalties) - 1, "the test decides nothing at an end"


def test_logistic_regression_finds_the_minimum_that_pytorch_finds():
    x, _ = standardised(X, OTHER)
    ours = fit_logistic(x, Y, CLASSES, 0.05)
    weights = torch.zeros(6, CLASSES, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(CLASSES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def objective():
        logits = torch.tensor(x) @ weights + bias
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(Y)) + 0.05 / 2 * weights.square().sum()
        return loss

    def closure():
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose(ours[:-1], weights.detach(), atol=2e-3)
    loss = cross_entropy(scores_of(x, ours), Y) + 0.05 / 2 * np.sum(ours[:-1] ** 2)
    assert loss == pytest.approx(objective().item(), abs=1e-6)


@pytest.mark.parametrize("method", (ridge, logistic))
def test_both_tell_blobs_apart_and_ignore_noise_with_the_right_penalty(method):
    noise = np.random.default_rng(1).normal(size=(100, 12)).astype(np.float32)
    x, other = np.concatenate([X, noise[:40]], 1), np.concatenate([OTHER, noise[40:]], 1)
    scores, penalty = method(x, Y, other, CLASSES)
    found = np.mean(scores.argmax(1) == THEIRS)
    least, _ = method(x, Y, other, CLASSES, (1e-5,))
    assert found >= np.mean(least.argmax(1) == THEIRS) and found > 0.6 and penalty > 1e-5
