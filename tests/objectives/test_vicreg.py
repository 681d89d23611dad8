"""VICReg between images and captions: value and gradient against PyTorch, and why it comes before normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from smke_jax.errors import UserError
from smke_jax.losses.collective import ALONE
from smke_jax.objectives.vicreg import vicreg

RNG = np.random.default_rng(0)
REPS = {
    "image/out": RNG.normal(0.3, 0.8, (12, 7)).astype(np.float32),
    "text/out": RNG.normal(-0.2, 0.5, (12, 9)).astype(np.float32),
}
SHAPES = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in REPS.items()}
PAIR = ("image/out", "text/out")


def by_torch(a, b):
    """The three parts as spec B.9 has them: unbiased variances, sums over both sides."""
    invariance = torch.nn.functional.mse_loss(a, b)
    variance = sum(torch.relu(1 - torch.sqrt(x.var(dim=0) + 1e-4)).mean() / 2 for x in (a, b))
    covariance = 0
    for x in (a, b):
        x = x - x.mean(dim=0)
        matrix = (x.T @ x) / (len(x) - 1)
        covariance = covariance + (matrix.fill_diagonal_(0) ** 2).sum() / x.shape[1]
    return invariance, variance, covariance


def test_value_and_gradient_through_an_expander_are_pytorchs():
    term = vicreg(PAIR, expander=(8, 5), invariance=3.0, variance=2.0, covariance=0.5)
    params, _ = term.init(jax.random.key(0), SHAPES)

    def loss(params, reps):
        value, metrics = term.value(params, (), reps, ALONE)
        return value, metrics

    with jax.default_matmul_precision("highest"):
        (value, metrics), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, REPS)
    theirs = {name: torch.tensor(x, requires_grad=True) for name, x in REPS.items()}
    layers = jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), params)
    expanded = []
    for side, name in zip("ab", PAIR):
        own = layers[side]
        hidden = torch.nn.functional.gelu(theirs[name] @ own["fc1"]["kernel"] + own["fc1"]["bias"])
        expanded.append(hidden @ own["fc2"]["kernel"] + own["fc2"]["bias"])
    parts = by_torch(*expanded)
    expected = 3 * parts[0] + 2 * parts[1] + 0.5 * parts[2]
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    found = [metrics[name] for name in ("invariance", "variance", "covariance")]
    np.testing.assert_allclose(found, [x.item() for x in parts], rtol=1e-4)
    np.testing.assert_allclose(metrics["rows_per_channel"], 12 / 5, rtol=1e-6)
    close = lambda a, b: np.testing.assert_allclose(a, b.grad, rtol=1e-3, atol=1e-5)  # noqa: E731
    jax.tree.map(close, grads, (layers, theirs))


def test_unit_vectors_can_never_meet_the_variance():
    """Their channels deviate by about 1/√D: the reason why VICReg is put before the normalisation."""
    x = RNG.normal(size=(500, 64)).astype(np.float32) * 2
    term = vicreg(("a", "b"))
    variance = {}
    for name, y in {"free": x, "unit": x / np.linalg.norm(x, axis=1, keepdims=True)}.items():
        variance[name] = float(term.value({}, (), {"a": jnp.asarray(y), "b": jnp.asarray(y)}, ALONE)[1]["variance"])
    assert variance["free"] == 0 and variance["unit"] == pytest.approx(1 - 1 / 8, abs=0.02)


def test_unequal_widths_need_an_expander():
    with pytest.raises(
        UserError, match="config.terms.vicreg: image/out has 7 channels and text/out 9: give an expander"
    ):
        vicreg(PAIR).init(jax.random.key(0), SHAPES)


def test_tokens_are_refused():
    shapes = {"image/tokens": jax.ShapeDtypeStruct((12, 4, 7), jnp.float32), "text/out": SHAPES["text/out"]}
    with pytest.raises(UserError, match=r"vicreg: image/tokens is \(12, 4, 7\), and pair names one vector per row"):
        vicreg(("image/tokens", "text/out"), expander=(8,)).init(jax.random.key(0), shapes)
