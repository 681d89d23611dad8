"""Mean squared error and VICReg against float64 references, in value and gradient, on 1, 2 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec

from smke_jax.losses.collective import Scope
from smke_jax.losses.distillation import mean_squared_error
from smke_jax.losses.vicreg import vicreg
from smke_jax.parallel.mesh import DATA_AXES, make_mesh

BATCH, WIDTH = 16, 6
DEVICES = (1, 2, 4, 8)


def pair(seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(WIDTH, WIDTH))  # correlated channels; some of std above 1, some below
    a = (rng.normal(size=(BATCH, WIDTH)) @ mix * np.linspace(0.1, 1.5, WIDTH) + 1).astype(np.float32)
    return a, (a + 0.5 * rng.normal(size=a.shape)).astype(np.float32)


def on(devices: int, function):
    """`function` of two row arguments as a mean over `devices` devices."""

    def local(a, b):
        return jax.tree.map(lambda x: jax.lax.pmean(x, DATA_AXES), function(a, b))

    rows = PartitionSpec(DATA_AXES)
    return jax.shard_map(local, mesh=make_mesh(devices), in_specs=(rows, rows), out_specs=PartitionSpec())


def finite_differences(function, x, step=1e-6):
    """Central differences of a scalar function of a float64 array."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[i] += step
        low[i] -= step
        gradient[i] = (function(high) - function(low)) / (2 * step)
    return gradient


@pytest.mark.parametrize("devices", DEVICES)
def test_mean_squared_error(devices):
    a, b = pair()
    value, grads = jax.value_and_grad(on(devices, mean_squared_error), argnums=(0, 1))(a, b)
    np.testing.assert_allclose(value, np.mean((a.astype(np.float64) - b) ** 2), rtol=1e-6)
    expected = 2 * (a.astype(np.float64) - b) / a.size
    np.testing.assert_allclose(grads[0], expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(grads[1], -expected, rtol=1e-5, atol=1e-8)


def test_mean_squared_error_is_fp32_whatever_comes_in():
    a, b = (jnp.asarray(x, jnp.bfloat16) for x in pair())
    loss = mean_squared_error(a, b)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2), rtol=1e-5)


def numpy_vicreg(a, b):
    """Eq. 1 to 5 of the paper, loops over channels; variance and covariance averaged over the two views."""

    def variance(x):
        return np.mean([max(0.0, 1 - np.sqrt(np.var(x[:, j], ddof=1) + 1e-4)) for j in range(WIDTH)])

    def covariance(x):
        c = np.cov(x, rowvar=False)
        return sum(c[i, j] ** 2 for i in range(WIDTH) for j in range(WIDTH) if i != j) / WIDTH

    return {
        "invariance": np.mean((a - b) ** 2),
        "variance": (variance(a) + variance(b)) / 2,
        "covariance": (covariance(a) + covariance(b)) / 2,
    }


@pytest.mark.parametrize("devices", DEVICES)
def test_vicreg(devices):
    a, b = pair()
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    expected = numpy_vicreg(a64, b64)
    sharded = on(devices, lambda a, b: vicreg(a, b, scope=Scope(DATA_AXES)))
    with jax.default_matmul_precision("highest"):
        parts, vjp = jax.vjp(jax.jit(sharded), a, b)
        assert set(parts) == set(expected)
        for name in expected:
            np.testing.assert_allclose(parts[name], expected[name], rtol=1e-5)
            assert expected[name] > 0.01
            d_a, d_b = vjp({key: jnp.float32(key == name) for key in parts})
            for ours, theirs in (
                (d_a, finite_differences(lambda x, name=name: numpy_vicreg(x, b64)[name], a64)),
                (d_b, finite_differences(lambda x, name=name: numpy_vicreg(a64, x)[name], b64)),
            ):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_vicreg_of_collapsed_views():
    """All rows equal: full variance penalty, no covariance, and a finite gradient (the 1e-4 under the root)."""
    x = np.full((BATCH, WIDTH), 0.5, np.float32)
    parts, vjp = jax.vjp(vicreg, x, x)
    np.testing.assert_allclose(parts["variance"], 0.99, rtol=1e-6)
    assert parts["invariance"] == parts["covariance"] == 0
    for g in vjp({key: jnp.float32(1) for key in parts}):
        assert np.all(np.isfinite(g))


def test_vicreg_against_the_authors_code():
    """facebookresearch/vicreg main_vicreg.py, whose covariance part is the *sum* over the views, twice ours."""
    a, b = pair(1)
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    repr_loss = torch.nn.functional.mse_loss(x, y)
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    std_x, std_y = torch.sqrt(x.var(dim=0) + 0.0001), torch.sqrt(y.var(dim=0) + 0.0001)
    std_loss = torch.mean(torch.relu(1 - std_x)) / 2 + torch.mean(torch.relu(1 - std_y)) / 2
    cov_x, cov_y = (x.T @ x) / (BATCH - 1), (y.T @ y) / (BATCH - 1)
    off = ~torch.eye(WIDTH, dtype=torch.bool)
    cov_loss = cov_x[off].pow(2).sum().div(WIDTH) + cov_y[off].pow(2).sum().div(WIDTH)
    parts = vicreg(a, b)
    np.testing.assert_allclose(parts["invariance"], repr_loss, rtol=1e-5)
    np.testing.assert_allclose(parts["variance"], std_loss, rtol=1e-5)
    np.testing.assert_allclose(2 * parts["covariance"], cov_loss, rtol=1e-5)
