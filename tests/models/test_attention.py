"""Attention by lengths, as cuDNN takes it, is attention by products: values and gradients."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smke_jax.models import attention
from smke_jax.models.attention import MULTIPLE, attention_by, best, by_lengths, by_products, form, takes
from smke_jax.models.layers import Attention

LENGTH = 13  # neither even nor a multiple of 8


@pytest.fixture
def on_a_cpu(monkeypatch):
    """XLA computes what cuDNN would, in float32."""
    monkeypatch.setattr(attention, "by_lengths", functools.partial(by_lengths, implementation="xla"))
    monkeypatch.setattr(attention, "takes", lambda *_, **__: True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_padding_to_a_multiple_changes_nothing(masked, biased, on_a_cpu):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, LENGTH, 8)), jnp.float32)
    words = np.array([LENGTH, 5, 1])
    mask = jnp.asarray(np.arange(LENGTH) < words[:, None], jnp.int32) if masked else None
    bias = jnp.asarray(rng.normal(size=(1, 2, LENGTH, LENGTH)), jnp.float32) if biased else None
    weights = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    module = Attention(num_heads=2)
    params = module.init(jax.random.key(0), x)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)  # biases are not 0

    def total(params, x, bias):
        out = module.apply(params, x, mask, bias)
        return jnp.sum(out * weights), out

    def result(name):
        with attention_by(name):
            return jax.grad(total, argnums=(0, 1, 2) if biased else (0, 1), has_aux=True)(params, x, bias)

    for ours, theirs in zip(*map(jax.tree.leaves, (result("products"), result("cudnn"))), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_cudnn_is_chosen_where_it_takes_what_is_asked():
    def chosen(name="cudnn", dtype=jnp.bfloat16, head_dim=64, biased=False, trained=True):
        with attention_by(name, trained=trained):
            return form(jnp.dtype(dtype), head_dim, biased=biased)

    assert chosen() == (by_lengths, MULTIPLE)
    assert chosen(biased=True, trained=False) == (by_lengths, MULTIPLE)
    for other in ({"name": "products"}, {"dtype": jnp.float32}, {"head_dim": 12}, {"head_dim": 256}, {"biased": True}):
        assert chosen(**other) == (by_products, 1), other
    assert form(jnp.dtype(jnp.bfloat16), 64, biased=False) == (by_products, 1)  # outside of any block
    assert takes(jnp.float16, 32, biased=False, trained=True)


def test_the_device_makes_the_choice():
    def of(name, platform, capability=None):
        return best(name, SimpleNamespace(platform=platform, compute_capability=capability))

    assert of("auto", "gpu", "9.0") == of("auto", "gpu", "8.6") == of("auto", "gpu", "10.0") == "cudnn"
    assert of("auto", "gpu", "7.5") == of("auto", "cpu") == of("auto", "tpu") == "products"
    assert of("products", "gpu", "9.0") == "products"
    assert best("auto", jax.devices("cpu")[0]) == "products"
