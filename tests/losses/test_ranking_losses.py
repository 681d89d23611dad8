"""Losses with a margin against PyTorch's MarginRankingLoss and CosineEmbeddingLoss, on 1, 2, 4 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import PartitionSpec

from smke_jax.losses import pairs
from smke_jax.losses.collective import Scope
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.ranking import mismatching_cosine_loss, ranking_loss
from smke_jax.objectives import TERMS
from smke_jax.parallel.mesh import DATA_AXES, make_mesh

BATCH, WIDTH = 16, 6
IDS = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0], np.int32)
KEY = jax.random.key(5)
devices_1_to_8 = pytest.mark.parametrize("devices", (1, 2, 4, 8))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So small that the ring cuts the rows of a device."""
    monkeypatch.setattr(pairs, "BLOCK", 48)


def data(seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, BATCH, WIDTH))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (a, a + b))


def on(devices, function, impl="gather"):
    """(mean of what `function(*rows, scope)` returns over devices, gradients of the first result)."""
    rows, everywhere = PartitionSpec(DATA_AXES), PartitionSpec()

    def run(*arguments):
        def local(key, *arguments):
            out = function(*arguments, scope=Scope(DATA_AXES, impl, key))
            return jax.tree.map(lambda x: jax.lax.pmean(x, DATA_AXES), out)

        where = (everywhere, *(rows for _ in arguments))
        return jax.shard_map(local, mesh=make_mesh(devices), in_specs=where, out_specs=everywhere)(KEY, *arguments)

    return jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))


def assert_near(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def tensors(*arrays):
    return [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in arrays]


@devices_1_to_8
@pytest.mark.parametrize("impl", ["gather", "ring"])
@pytest.mark.parametrize("with_ids", [False, True])
def test_ranking_is_pytorchs_over_all_other_pairs(with_ids, impl, devices):
    a, b = data()
    margin = 0.4

    def function(a, b, ids, scope):
        return ranking_loss(a, b, margin=margin, scope=scope, ids=ids if with_ids else None)

    (loss, accuracy), grads = on(devices, function, impl)(a, b, IDS)
    x, y = tensors(a, b)
    cosines = x @ y.T
    other = ~np.eye(BATCH, dtype=bool) & ((IDS[:, None] != IDS) if with_ids else True)
    own = cosines.diagonal()[:, None].expand(BATCH, BATCH)
    hinge = torch.nn.MarginRankingLoss(margin, reduction="sum")
    expected = hinge(own[other], cosines[other], torch.ones(int(other.sum()))) / (BATCH * (BATCH - 1))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    assert_near(grads, (x.grad, y.grad))
    best = cosines.masked_fill(torch.tensor(~other), -2).max(dim=1).values
    np.testing.assert_allclose(accuracy, (cosines.diagonal() > best).double().mean().item(), rtol=1e-6)
    assert 0 < accuracy < 1 and loss > 0.01


@devices_1_to_8
def test_cosine_embedding_loss_is_pytorchs(devices):
    a, b = data(1)
    margin = 0.2
    shift = jax.random.randint(KEY, (BATCH,), 1, BATCH)
    j = (np.arange(BATCH) + np.asarray(shift)) % BATCH
    assert np.all(j != np.arange(BATCH)) and len(set(shift.tolist())) > 3

    def function(a, b, scope):
        loss, metrics = TERMS["cosine"](margin=margin).value({}, (), {"image/out": 3 * a, "text/out": 2 * b}, scope)
        return loss, metrics

    (loss, metrics), grads = on(devices, function)(a, b)
    x, y = tensors(a, b)
    criterion = torch.nn.CosineEmbeddingLoss(margin)
    matching, others = criterion(3 * x, 2 * y, torch.ones(BATCH)), criterion(3 * x, 2 * y[j], -torch.ones(BATCH))
    expected = (matching + others) / 2
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["positive_out"], matching.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["negative_out"], others.item(), rtol=1e-5)
    assert_near(grads, (x.grad, y.grad))
    assert others > 0.01


def test_the_other_row_is_any_but_its_own_and_equally_often():
    """Rows are unit vectors, so the loss of row i against all of `b` but j tells whether j was drawn."""
    count, keys = 5, jax.random.split(jax.random.key(0), 2000)
    eye = jnp.eye(count)

    def chosen(key, i, j):
        one = jnp.zeros((count, count)).at[i].set(1.0)  # only anchor i says anything
        return count * mismatching_cosine_loss(one * eye[j], eye, margin=0.0, scope=Scope(key=key))

    of_all = jax.jit(jax.vmap(jax.vmap(chosen, (None, None, 0)), (0, None, None)))  # (keys, j)
    for i in (0, 3):
        counts = of_all(keys, i, jnp.arange(count)).sum(axis=0)
        assert counts[i] == 0 and counts.sum() == 2000
        assert all(abs(n - 500) < 80 for j, n in enumerate(counts) if j != i), counts  # 4 standard deviations


def test_a_constant_student_is_best_without_negatives():
    """1 - cos is never negative, and it is 0, with no gradient at all, where every embedding is the same one.

    Alone it therefore teaches nothing but to be constant; with negatives the same student pays (1 - margin) / 2.
    """
    term, rng = TERMS["cosine"](negatives=False), np.random.default_rng(0)
    constant = np.repeat(rng.normal(size=(1, WIDTH)), BATCH, axis=0).astype(np.float32)

    def loss(term, image, text):
        return term.value({}, (), {"image/out": image, "text/out": text}, Scope(key=KEY))[0]

    value, grads = jax.value_and_grad(loss, argnums=(1, 2))(term, constant, constant)
    assert abs(value) < 1e-6 and max(np.abs(g).max() for g in grads) < 1e-6
    assert all(loss(term, *data(seed)) > value + 0.1 for seed in range(5))
    np.testing.assert_allclose(loss(TERMS["cosine"](margin=0.5), constant, constant), 0.25, rtol=1e-5)


def test_a_student_without_negatives_collapses():
    """Two linear towers from random weights, the images' and texts' noise their only input: all become one vector."""
    term, (images, texts) = TERMS["cosine"](negatives=False), data(2)
    keys = jax.random.split(jax.random.key(1))
    params = [jax.random.normal(key, (WIDTH + 1, WIDTH)) for key in keys]
    tx = optax.adam(0.05)

    def embed(params):
        ones = np.ones((BATCH, 1), np.float32)
        return [np.concatenate([x, ones], 1) @ w for x, w in zip((images, texts), params, strict=True)]

    def loss(params):
        image, text = embed(params)
        return term.value({}, (), {"image/out": image, "text/out": text}, Scope())[0]

    def spread(params):
        return [float(np.std(normalise(x), axis=0).mean()) * WIDTH**0.5 for x in embed(params)]

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state, before = tx.init(params), spread(params)
    for _ in range(400):
        params, state, value = step(params, state)
    assert value < 0.01 and min(before) > 0.5 and max(spread(params)) < 0.2 * min(before)
