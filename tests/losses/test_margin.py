"""Losses with a margin against PyTorch's MarginRankingLoss and CosineEmbeddingLoss, on 1, 2 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from over_devices import DEVICES, assert_near, run_together, spread, tensors

from smke_jax.losses import ring
from smke_jax.losses.collective import Scope
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.margin import matching_cosine_loss, mismatching_cosine_loss, ranking_loss

BATCH, WIDTH = 16, 6
IDS = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0], np.int32)
KEY = jax.random.key(5)
RANKING_MARGIN, COSINE_MARGIN = 0.4, 0.2


def pair(seed=0):
    """Embeddings and others that are near them."""
    a, b = np.random.default_rng(seed).normal(size=(2, BATCH, WIDTH))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (a, a + b))


A, B = pair()


def ranking(a, b, ids, scope):
    return ranking_loss(a, b, margin=RANKING_MARGIN, scope=scope)


def ranking_with_ids(a, b, ids, scope):
    return ranking_loss(a, b, margin=RANKING_MARGIN, scope=scope, ids=ids)


def cosine(a, b, ids, scope):
    """The mean of both parts, from embeddings of another length than 1."""
    a, b = normalise(3 * a), normalise(2 * b)
    matching = matching_cosine_loss(a, b)
    mismatching = mismatching_cosine_loss(a, b, margin=COSINE_MARGIN, scope=scope)
    return (matching + mismatching) / 2, (matching, mismatching)


@pytest.fixture(scope="module", params=[(impl, devices) for impl in ("gather", "ring") for devices in DEVICES], ids=str)
def outcomes(request):
    """{case: ((loss, more), gradients)} of all cases, compiled as one program."""
    impl, devices = request.param
    cases = {case.__name__: spread(devices, case, impl=impl, key=KEY) for case in (ranking, ranking_with_ids, cosine)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "BLOCK", 48)  # so small that the ring cuts the rows of a device
        return run_together(cases, (A, B, IDS), to=(0, 1))


@pytest.mark.parametrize("case", ["ranking", "ranking_with_ids"])
def test_ranking_is_pytorchs_over_all_other_pairs(outcomes, case):
    (loss, accuracy), gradients = outcomes[case]
    a, b = tensors(A, B)
    cosines = a @ b.T
    other = ~np.eye(BATCH, dtype=bool) & ((IDS[:, None] != IDS) if case == "ranking_with_ids" else True)
    own = cosines.diagonal()[:, None].expand(BATCH, BATCH)
    hinge = torch.nn.MarginRankingLoss(RANKING_MARGIN, reduction="sum")
    expected = hinge(own[other], cosines[other], torch.ones(int(other.sum()))) / (BATCH * (BATCH - 1))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    assert_near(gradients[0], a.grad.numpy())
    assert_near(gradients[1], b.grad.numpy())
    hardest = cosines.masked_fill(torch.tensor(~other), -2).max(dim=1).values
    np.testing.assert_allclose(accuracy, (cosines.diagonal() > hardest).double().mean().item(), rtol=1e-6)
    assert 0 < accuracy < 1 and loss > 0.01


def test_cosine_embedding_loss_is_pytorchs(outcomes):
    shift = np.asarray(jax.random.randint(KEY, (BATCH,), 1, BATCH))
    j = (np.arange(BATCH) + shift) % BATCH
    assert np.all(j != np.arange(BATCH)) and len(set(shift)) > 3
    (loss, (matching, mismatching)), gradients = outcomes["cosine"]
    a, b = tensors(A, B)
    criterion = torch.nn.CosineEmbeddingLoss(COSINE_MARGIN)
    expected = criterion(3 * a, 2 * b, torch.ones(BATCH)), criterion(3 * a, 2 * b[j], -torch.ones(BATCH))
    (sum(expected) / 2).backward()
    np.testing.assert_allclose((matching, mismatching), [x.item() for x in expected], rtol=1e-5)
    np.testing.assert_allclose(loss, sum(expected).item() / 2, rtol=1e-5)
    assert_near(gradients[0], a.grad.numpy())
    assert_near(gradients[1], b.grad.numpy())
    assert mismatching > 0.01


def test_the_other_row_is_any_but_its_own_and_equally_often():
    """Rows are unit vectors, so the loss of row i against all of `b` but j tells whether j was drawn."""
    count, keys = 5, jax.random.split(jax.random.key(0), 2000)
    eye = jnp.eye(count)

    def chosen(key, i, j):
        one = jnp.zeros((count, count)).at[i].set(1.0)  # only anchor i says anything
        return count * mismatching_cosine_loss(one * eye[j], eye, margin=0.0, scope=Scope(key=key))

    of_all = jax.jit(jax.vmap(jax.vmap(chosen, (None, None, 0)), (0, None, None)))  # (keys, j)
    for i in (0, 3):
        counts = np.asarray(of_all(keys, i, np.arange(count))).sum(axis=0)
        assert counts[i] == 0 and counts.sum() == 2000
        assert all(abs(n - 500) < 80 for j, n in enumerate(counts) if j != i), counts  # 4 standard deviations


def test_a_constant_student_is_best_without_negatives():
    """1 - cos is never negative, and it is 0, with no gradient at all, where every embedding is the same one.

    Alone it therefore teaches nothing but to be constant; with negatives the same student pays 1 - margin.
    """

    @jax.jit
    def run(a, b):
        matching, gradients = jax.value_and_grad(
            lambda a, b: matching_cosine_loss(normalise(a), normalise(b)), argnums=(0, 1)
        )(a, b)
        a, b = normalise(a), normalise(b)
        return matching, mismatching_cosine_loss(a, b, margin=0.5, scope=Scope(key=KEY)), gradients

    constant = np.repeat(np.random.default_rng(0).normal(size=(1, WIDTH)), BATCH, axis=0).astype(np.float32)
    matching, mismatching, gradients = run(constant, constant)
    assert abs(matching) < 1e-6 and max(np.abs(g).max() for g in gradients) < 1e-6
    np.testing.assert_allclose(mismatching, 0.5, rtol=1e-5)
    assert run(A, B)[0] > 0.1


def test_a_student_without_negatives_collapses():
    """Two linear towers, trained from random weights: all embeddings become one vector."""
    images, texts = pair(2)
    params = [jax.random.normal(key, (WIDTH + 1, WIDTH)) for key in jax.random.split(jax.random.key(1))]
    tx = optax.adam(0.05)

    def embed(params):
        ones = np.ones((BATCH, 1), np.float32)
        return [normalise(np.concatenate([x, ones], 1) @ w) for x, w in zip((images, texts), params, strict=True)]

    def step(carry, _):
        params, state = carry
        gradients = jax.grad(lambda params: matching_cosine_loss(*embed(params)))(params)
        updates, state = tx.update(gradients, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params):
        (after, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=400)
        return embed(params), embed(after), matching_cosine_loss(*embed(after))

    def spread_of(embeddings):
        return [float(np.std(x, axis=0).mean()) * WIDTH**0.5 for x in embeddings]

    before, after, loss = train(params)
    assert loss < 0.01 and min(spread_of(before)) > 0.5 and max(spread_of(after)) < 0.2 * min(spread_of(before))
