"""Linear classifiers on features: ridge against its definition, logistic regression against PyTorch."""

import logging

import numpy as np
import pytest
import torch

from smke_jax.errors import UserError
from smke_jax.evaluators import linear
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
    least, _ = method(x, Y, other, CLASSES, (1e-4,))
    assert found > np.mean(least.argmax(1) == THEIRS) and found > 0.6
    assert 1e-4 < penalty < 100, "the grid is from 1e-4 to 100"


@pytest.mark.parametrize("method", (ridge, logistic))
def test_few_rows_are_left_out_one_by_one_and_one_is_too_few(method, caplog):
    x, labels = np.array([[0.0, 1], [1, 0], [0.1, 0.9], [0.8, 0.1]]), np.array([0, 1, 0, 1])
    with caplog.at_level(logging.WARNING, "smke_jax"):
        scores, penalty = method(x, labels, x, 2)
    assert scores.argmax(1).tolist() == [0, 1, 0, 1] and np.isfinite(scores).all()
    with pytest.raises(UserError, match="a probe needs 2 rows to be fitted to, there is 1"):
        method(x[:1], labels[:1], x, 2)


def test_folds_of_few_rows_choose_what_leaving_out_chooses():
    """Labels without any pattern: the highest penalty is the best, and an empty fold must not say otherwise."""
    x, labels = np.random.default_rng(3).normal(size=(4, 30)), np.array([0, 1, 1, 0])
    totals = []
    for penalty in (1e-4, 100.0):
        losses = []
        for i in range(4):
            own = np.arange(4) != i
            part, rest = standardised(x[own], x[~own])
            losses.append(cross_entropy(scores_of(rest, fit_logistic(part, labels[own], 2, penalty)), labels[~own]))
        totals.append(np.mean(losses))
    assert logistic(x, labels, x, 2, (1e-4, 100.0))[1] == (1e-4, 100.0)[int(np.argmin(totals))]


def test_it_is_said_where_a_fit_or_the_grid_ends_too_early(caplog, monkeypatch):
    with caplog.at_level(logging.WARNING, "smke_jax"):
        ridge(X, Y, OTHER, CLASSES, (0.1, 0.3, 1.0))
        logistic(X, Y, OTHER, CLASSES, (0.05,))
    assert not caplog.text.count("converged")
    with caplog.at_level(logging.WARNING, "smke_jax"):
        ridge(X, Y, OTHER, CLASSES, (50.0, 100.0))
    assert "the probe's penalty is 50, at the end of those that were tried" in caplog.text
    monkeypatch.setattr(linear, "STEPS", 1)
    with caplog.at_level(logging.WARNING, "smke_jax"):
        fit_logistic(standardised(X, OTHER)[0], Y, CLASSES, 1e-3)
    assert "penalty 0.001 has not converged after 1 steps" in caplog.text


@pytest.mark.parametrize("method", (ridge, logistic))
def test_what_does_not_fit_into_memory_is_refused(method, monkeypatch):
    monkeypatch.setattr(linear, "LARGEST", 200)
    with pytest.raises(UserError, match="40 rows of 6 channels would not fit into memory: give fewer rows"):
        method(X, Y, OTHER, CLASSES)


def test_rows_in_chunks_give_the_same_ridge(monkeypatch):
    whole = ridge(X, Y, OTHER, CLASSES)
    monkeypatch.setattr(linear, "CHUNK", 7)
    chunks = ridge(X, Y, OTHER, CLASSES)
    assert whole[1] == chunks[1]
    np.testing.assert_allclose(whole[0], chunks[0])
