"""Losses of what is hidden and of soft targets: value and gradient by PyTorch, on 1, 2 and 8 devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from over_devices import DEVICES, assert_near, run_together, spread, tensors, unit_rows

from smke_jax.losses.masked import masked_words, mean_at, spread_at
from smke_jax.losses.pairs import NOBODY
from smke_jax.losses.soft_contrast import soft_contrast
from smke_jax.standardise import standardised

B, M, V, D, K = 16, 4, 11, 6, 10
rng = np.random.default_rng(0)
LOGITS, TAUGHT = (rng.normal(size=(B, M, V)).astype(np.float32) for _ in range(2))
# Rows have different numbers of masked words; the first two have none.
LABELS = np.where(np.arange(M) < rng.integers(0, M + 1, (B, 1)), rng.integers(0, V, (B, M)), -1).astype(np.int32)
LABELS[:2] = -1


def over_devices(function, arrays, to=(0,), whole=()):
    """{devices: ((loss, more), gradients)} of `function(*arrays, scope=…)`."""
    run = lambda devices: run_together({0: spread(devices, function, whole=whole)}, arrays, to=to)[0]  # noqa: E731
    return {devices: run(devices) for devices in DEVICES}


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_masked_words(share):
    def ours(logits, labels, taught, scope):
        return masked_words(logits, labels, taught=taught if share else None, share=share, scope=scope)

    logits, taught = tensors(LOGITS, TAUGHT)
    there = torch.tensor(LABELS >= 0)
    rows, right = logits[there], torch.tensor(LABELS).long()[there]
    loss = (1 - share) * F.cross_entropy(rows, right)
    loss = loss + share * F.cross_entropy(rows, taught[there].softmax(-1).detach())
    loss.backward()
    accuracy = (rows.argmax(-1) == right).double().mean()
    for (value, more), (gradient,) in over_devices(ours, (LOGITS, LABELS, TAUGHT)).values():
        assert_near(value, loss.item())
        assert_near(more, accuracy.item())
        assert_near(gradient, logits.grad.numpy())
    assert not np.any(gradient[LABELS < 0]), "no gradient where nothing is masked"


def test_nothing_masked_costs_nothing():
    value, accuracy = masked_words(LOGITS, np.full_like(LABELS, -1))
    assert value == 0 and accuracy == 0


def test_a_mean_over_places_is_no_mean_of_means():
    where = np.zeros((B, M), bool)
    where[0], where[-1, 0] = True, True
    x = np.arange(B * M, dtype=np.float32).reshape(B, M)

    def ours(x, where, scope):
        return mean_at(x, where, scope), 0.0

    for (value, _), (gradient,) in over_devices(ours, (x, where)).values():
        assert_near(value, x[where].mean())
        assert_near(gradient, where / where.sum())


def test_standardised_tokens_are_layer_norm_without_parameters():
    x = (5 + 3 * rng.normal(size=(B, M, D))).astype(np.float32)
    x[0] = 0.003 * rng.normal(size=(M, D))  # of which the epsilon is the most
    (tensor,) = tensors(x)
    weights = rng.normal(size=x.shape)
    theirs = F.layer_norm(tensor, (D,))
    (theirs * torch.tensor(weights)).sum().backward()
    assert_near(standardised(x), theirs.detach().numpy())
    assert_near(jax.grad(lambda x: jnp.sum(standardised(x) * weights))(x), tensor.grad.numpy(), 1e-4)


def test_how_different_tokens_are():
    """0 where all are the same; 1 where they point in all directions alike; the tokens elsewhere do not count."""
    x = rng.normal(size=(B, 40, 30)).astype(np.float32)
    where = rng.random((B, 40)) < 0.6
    collapsed = np.where(where[..., None], np.ones(30, np.float32), x)

    def ours(x, collapsed, where, scope):
        return spread_at(x, where, scope), spread_at(collapsed, where, scope)

    chosen = x[where] / np.linalg.norm(x[where], axis=1, keepdims=True)
    expected = chosen.std(axis=0).mean() * np.sqrt(30)
    for (value, zero), _ in over_devices(ours, (x, collapsed, where)).values():
        assert_near(value, expected, 1e-4)
        assert 0.9 < value < 1.01 and zero < 1e-3


@pytest.mark.parametrize("same_image", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_contrast_with_soft_targets(share, same_image):
    """ALBEF's eq. 6 by PyTorch; places of the queue that hold nothing are no candidates."""
    queries, slow, fresh, bank = (unit_rows(rng, n, D) for n in (B, B, B, K))
    ids = rng.integers(0, 6, B).astype(np.int32)
    bank_ids = rng.integers(0, 12, K).astype(np.int32)
    bank_ids[-3:] = NOBODY
    scale = np.float32(5.0)
    candidates, candidate_ids = np.concatenate([fresh, bank]), np.concatenate([ids, bank_ids])

    def ours(queries, slow, ids, scale, candidates, candidate_ids, scope):
        options = {"share": share, "ids": ids, "candidate_ids": candidate_ids, "same_image": same_image}
        return soft_contrast(queries, slow, candidates, scale, scope=scope, **options)

    q, temperature, s, c = tensors(queries, scale, slow, candidates[: B + K - 3])
    logits, slow_logits = (temperature * x @ c.T for x in (q, s))
    right = torch.tensor(ids[:, None] == candidate_ids[: B + K - 3]) if same_image else torch.eye(B, B + K - 3) > 0
    target = (1 - share) * right / right.sum(1, keepdim=True) + share * slow_logits.softmax(1)
    loss = -(target.detach() * logits.log_softmax(1)).sum(1).mean()
    loss.backward()
    accuracy = right[torch.arange(B), logits.argmax(1)].double().mean()
    arrays = (queries, slow, ids, scale, candidates, candidate_ids)
    found = over_devices(ours, arrays, to=(0, 1, 3), whole=(3, 4, 5)).values()
    for (value, more), (d_queries, d_slow, d_scale) in found:
        assert_near(value, loss.item())
        assert_near(more, accuracy.item())
        assert_near(d_queries, q.grad.numpy())
        assert_near(d_scale, temperature.grad.numpy(), 1e-4)
        assert not np.any(d_slow), "the slow encoder's softmax is a target"


def test_without_a_share_and_a_queue_it_is_info_nce():
    """Closed case: one's own partner is right, so that the loss is the cross entropy of the batch's logits."""
    a, b = unit_rows(rng, B, D), unit_rows(rng, B, D)
    ids = np.arange(B, dtype=np.int32)
    options = {"share": 0.0, "ids": ids, "candidate_ids": ids}
    values = [soft_contrast(a, b, b, 3.0, same_image=x, **options)[0] for x in (True, False)]
    expected = F.cross_entropy(torch.tensor(3 * a @ b.T), torch.arange(B)).item()
    assert_near(np.array(values), np.array([expected, expected]))


def test_the_cases_cover_uneven_devices():
    counts = functools.reduce(lambda a, b: a | {b}, (LABELS.reshape(8, -1) >= 0).sum(axis=1).tolist(), set())
    assert len(counts) > 2 and 0 in counts, "devices have different numbers of masked words, one has none"
