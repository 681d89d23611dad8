"""Attention by lengths, as cuDNN takes it, is attention by products: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smke_jax.models import attention
from smke_jax.models.attention import attend, attention_by, by_lengths, by_products

LENGTH = 13  # neither even nor a multiple of 8


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_padding_to_a_multiple_changes_nothing(masked, biased):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(3, LENGTH, 2, 4)), jnp.float32) for _ in range(3))
    words = np.array([LENGTH, 5, 1])
    mask = jnp.asarray(np.arange(LENGTH) < words[:, None], jnp.int32) if masked else None
    bias = jnp.asarray(rng.normal(size=(1, 2, LENGTH, LENGTH)), jnp.float32) if biased else None
    weights = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

    def total(attend, q, k, v, bias):
        out = attend(q, k, v, mask, bias)
        return jnp.sum(out * weights), out

    def by_xla(*arguments):
        return by_lengths(*arguments, implementation="xla")

    by = (0, 1, 2, 3) if biased else (0, 1, 2)
    results = [
        jax.grad(lambda *arrays, form=form: total(form, *arrays), argnums=by, has_aux=True)(q, k, v, bias)
        for form in (by_products, by_xla)
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_choice_holds_in_its_block_alone(monkeypatch):
    monkeypatch.setitem(attention.ATTENTION, "cudnn", lambda q, *_: q + 1)
    q = jnp.ones((1, 2, 1, 1))
    with attention_by("cudnn"):
        assert float(attend(q, q, q)[0, 0, 0, 0]) == 2
    assert float(attend(q, q, q)[0, 0, 0, 0]) == 1
