"""Mean squared errors, KL divergence and VICReg against float64 references, on 1, 2 and 8 devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from over_devices import DEVICES, assert_near, run_together, spread, tensors

from smke_jax.losses.distillation import kl_divergence, mean_squared_error, mean_squared_error_of_tokens
from smke_jax.losses.vicreg import vicreg

BATCH, WIDTH = 16, 6
PARTS = ("invariance", "variance", "covariance")


def pair():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(WIDTH, WIDTH))  # correlated channels; some of std above 1, some below
    a = (rng.normal(size=(BATCH, WIDTH)) @ mix * np.linspace(0.1, 1.5, WIDTH) + 1).astype(np.float32)
    return a, (a + 0.5 * rng.normal(size=a.shape)).astype(np.float32)


A, B = pair()
SHARPNESS = 20  # logits as sharp as those of a classifier

CASES = {
    "mean squared error": lambda a, b, scope: (mean_squared_error(a, b), ()),
    "KL divergence": lambda a, b, scope: (kl_divergence(SHARPNESS * a, SHARPNESS * b), ()),
} | {part: lambda a, b, scope, part=part: (vicreg(a, b, scope=scope)[part], ()) for part in PARTS}


@pytest.fixture(scope="module", params=DEVICES)
def outcomes(request):
    """{case: ((loss, ()), gradients)} of all cases, compiled as one program."""
    cases = {name: spread(request.param, case) for name, case in CASES.items()}
    return run_together(cases, (A, B), to=(0, 1))


def test_mean_squared_error(outcomes):
    (loss, _), gradients = outcomes["mean squared error"]
    a, b = tensors(A, B)
    expected = torch.nn.functional.mse_loss(a, b)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    assert_near(gradients[0], a.grad.numpy())
    assert_near(gradients[1], b.grad.numpy())


def test_padding_has_no_part_in_the_error_of_tokens():
    """The mean over the tokens of the global batch, of which devices hold different numbers; one row has none."""
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(BATCH, 5, WIDTH)).astype(np.float32) for _ in range(2))
    mask = (np.arange(5) < rng.permutation(np.arange(BATCH) % 6)[:, None]).astype(np.int32)
    ours, target = tensors(a, b)
    kept = torch.tensor(mask, dtype=torch.bool)
    expected = torch.nn.functional.mse_loss(ours[kept], target[kept])
    expected.backward()
    for devices in DEVICES:
        error = spread(devices, lambda a, b, m, scope: (mean_squared_error_of_tokens(a, b, m, scope=scope), ()))
        found = run_together({"error": error}, (a, b, mask), to=(0, 1))
        (loss, _), gradients = found["error"]
        np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
        assert_near(gradients[0], ours.grad.numpy())
        assert_near(gradients[1], target.grad.numpy())


def test_kl_divergence_is_that_of_pytorch(outcomes):
    (loss, _), gradients = outcomes["KL divergence"]
    logits, target = tensors(A, B)
    q, p = (SHARPNESS * logits).log_softmax(-1), (SHARPNESS * target).log_softmax(-1)
    expected = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    assert_near(gradients[0], logits.grad.numpy())
    assert_near(gradients[1], target.grad.numpy())


def test_losses_of_half_precision_are_fp32():
    a, b = (jnp.asarray(x, jnp.bfloat16) for x in (A, B))
    squared, kl = jax.jit(lambda a, b: (mean_squared_error(a, b), kl_divergence(b, b)))(a, b)
    assert squared.dtype == kl.dtype == jnp.float32
    exact = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    np.testing.assert_allclose(squared, exact, rtol=1e-5)
    assert abs(kl) < 1e-6


# ---- VICReg


def paper_vicreg(z, z_other):
    """(s, v + v', c + c'): the sums that λ, μ and ν multiply in equation 6 of Bardes et al. 2022, symbol by symbol."""
    n, d = z.shape
    gamma, epsilon = 1.0, 1e-4

    def regularised_std(x):  # S(x, ε), eq. 2
        return np.sqrt(sum((one - sum(x) / n) ** 2 for one in x) / (n - 1) + epsilon)

    def v(z):  # eq. 1
        return sum(max(0.0, gamma - regularised_std(z[:, j])) for j in range(d)) / d

    def c(z):  # eq. 3 and 4
        covariance = sum(np.outer(row - z.mean(axis=0), row - z.mean(axis=0)) for row in z) / (n - 1)
        return sum(covariance[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d

    s = sum(np.linalg.norm(one - other) ** 2 for one, other in zip(z, z_other, strict=True)) / n  # eq. 5
    return s, v(z) + v(z_other), c(z) + c(z_other)


def published(a, b):
    """The parts as the authors' code has them: means over channels in s, over views in v; the sum over views in c."""
    s, v, c = paper_vicreg(a, b)
    return {"invariance": s / WIDTH, "variance": v / 2, "covariance": c}


@functools.cache
def published_with_gradients():
    """{part: (value, its gradients by both views)}, the gradients as central differences."""
    a, b, step = A.astype(np.float64), B.astype(np.float64), 1e-6
    gradients = {part: (np.zeros_like(a), np.zeros_like(b)) for part in PARTS}
    for view, x in enumerate((a, b)):
        for i in np.ndindex(x.shape):
            middle = x[i]
            x[i] = middle + step
            high = published(a, b)
            x[i] = middle - step
            low = published(a, b)
            x[i] = middle
            for part in PARTS:
                gradients[part][view][i] = (high[part] - low[part]) / (2 * step)
    return {part: (value, gradients[part]) for part, value in published(a, b).items()}


@pytest.mark.parametrize("part", PARTS)
def test_vicreg(outcomes, part):
    (value, _), gradients = outcomes[part]
    expected, expected_gradients = published_with_gradients()[part]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert expected > 0.01
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert_near(ours, theirs, 1e-4)


def test_vicreg_by_hand():
    """Two rows (1, 1) and (-1, -1): covariance matrix ((2, 2), (2, 2)), so (2² + 2²) / 2 = 4 for each of two views.

    The second view is half as large: covariances 0.5, so (0.5² + 0.5²) / 2 = 0.25, and standard deviation √0.5.
    """
    view = np.array([[1.0, 1.0], [-1.0, -1.0]], np.float32)
    parts = jax.jit(vicreg)(view, view)
    np.testing.assert_allclose(parts["covariance"], 8.0, rtol=1e-6)
    assert parts["invariance"] == parts["variance"] == 0
    parts = jax.jit(vicreg)(view, view / 2)
    np.testing.assert_allclose(parts["covariance"], 4.25, rtol=1e-6)
    np.testing.assert_allclose(parts["invariance"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(parts["variance"], (0 + 1 - np.sqrt(0.5001)) / 2, rtol=1e-5)


def test_vicreg_of_collapsed_views():
    """All rows equal: full variance penalty, no covariance, and a finite gradient (the 1e-4 under the root)."""
    x = np.full((BATCH, WIDTH), 0.5, np.float32)
    run = jax.jit(lambda x: (vicreg(x, x), jax.grad(lambda x: sum(vicreg(x, 2 * x - 0.5).values()))(x)))
    parts, gradient = run(x)
    np.testing.assert_allclose(parts["variance"], 0.99, rtol=1e-6)
    assert parts["invariance"] == parts["covariance"] == 0
    assert np.all(np.isfinite(gradient))


def test_vicreg_against_the_authors_code():
    """facebookresearch/vicreg, main_vicreg.py: its std_loss is the mean over the views, its cov_loss the sum."""
    a, b = (torch.tensor(x, dtype=torch.float64) for x in (A, B))
    off_diagonal = ~torch.eye(WIDTH, dtype=torch.bool)
    std_losses = [torch.relu(1 - torch.sqrt(x.var(dim=0) + 0.0001)).mean() for x in (a, b)]
    cov_losses = [torch.cov(x.T)[off_diagonal].square().sum() / WIDTH for x in (a, b)]
    parts = jax.jit(vicreg)(A, B)
    np.testing.assert_allclose(parts["invariance"], torch.nn.functional.mse_loss(a, b), rtol=1e-5)
    np.testing.assert_allclose(parts["variance"], std_losses[0] / 2 + std_losses[1] / 2, rtol=1e-5)
    np.testing.assert_allclose(parts["covariance"], cov_losses[0] + cov_losses[1], rtol=1e-5)
