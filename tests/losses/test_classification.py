"""Cross-entropy of labels: the value and the gradient of PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from smke_jax.errors import UserError
from smke_jax.losses.classification import cross_entropy
from smke_jax.objectives.classify import classify

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(6, 5)) * 4).astype(np.float32)
WHOLE = RNG.integers(0, 5, 6).astype(np.int32)
SHARES = RNG.dirichlet(np.ones(5), 6).astype(np.float32)


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("labels", (WHOLE, SHARES), ids=("integers", "shares"))
def test_value_and_gradient_are_those_of_pytorch(labels, smoothing):
    loss = lambda logits: jnp.mean(cross_entropy(logits, jnp.asarray(labels), smoothing))  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(LOGITS)
    logits = torch.tensor(LOGITS, requires_grad=True)
    target = torch.tensor(labels.astype(np.int64) if labels.ndim == 1 else labels)
    expected = torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_a_label_that_is_no_class_is_not_taken_for_one():
    losses = cross_entropy(jnp.asarray(LOGITS[:2]), jnp.asarray([1, 5]))
    assert np.isfinite(losses[0]) and np.isnan(losses[1])


def test_logits_of_bfloat16_lose_nothing_in_the_sum():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    losses = cross_entropy(logits, jnp.asarray(WHOLE))
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, cross_entropy(logits.astype(jnp.float32), jnp.asarray(WHOLE)))


def test_shares_of_other_classes_are_refused():
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)  # noqa: E731
    with pytest.raises(UserError, match="class/logits has 5 classes and a row of label 4"):
        classify().init(jax.random.key(0), {"class/logits": shape(8, 5), "label": shape(8, 4)})
    with pytest.raises(UserError, match="smoothing is 1.0"):
        classify(smoothing=1.0)
