import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.losses.contrastive import info_nce
from smke_jax.studies.benchmarks.logit_precision import FROM_BF16, errors, full, gradient, rounded, sum_errors


def test_the_gradient_is_that_of_the_loss():
    rng = np.random.default_rng(0)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 12, 16)).astype(np.float32))
    theirs = jax.grad(lambda a: 12 * info_nce(a, jnp.asarray(b), jnp.float32(20.0))[0])(jnp.asarray(a))
    np.testing.assert_allclose(gradient(jnp.asarray(a), jnp.asarray(b), 20.0, jnp, full), theirs, atol=1e-4)


def test_more_bits_bring_less_error():
    found = errors(256, 50.0, queries=32)
    assert found["fp32"] < found["bf16, three passes"] < 2e-5 < found["TF32"] < found["bf16"] < 1e-2
    assert 1e-3 < found[FROM_BF16] < 1e-2


def test_rounding_keeps_the_bits_of_the_formats():
    x = jnp.float32(1 + 2**-9)
    assert rounded(x, 10) == x and rounded(x, 7) == 1
    assert rounded(jnp.float32(np.pi), 7) == jnp.float32(np.pi).astype(jnp.bfloat16)


def test_sums_of_bfloat16_lose_what_its_own_arithmetic_loses():
    shares = np.random.default_rng(3).normal(size=(4, 50)).astype(np.float32)
    a, b, c, d = shares.astype(jnp.bfloat16)
    exact = shares.astype(np.float64).sum(axis=0)
    for found, total in zip(sum_errors(4, numbers=50, seed=3), (a + b + c + d, (a + b) + (c + d)), strict=True):
        error = np.linalg.norm(total.astype(np.float64) - exact) / np.linalg.norm(exact)
        np.testing.assert_allclose(found, error, rtol=1e-6)
