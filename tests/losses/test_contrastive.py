"""Contrastive losses against float64 NumPy and PyTorch, in value and gradient, on 1, 2 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec

from smke_jax.losses.contrastive import info_nce, normalise, symmetric_info_nce
from smke_jax.parallel.mesh import DATA_AXIS, make_mesh

BATCH, WIDTH, BANK = 16, 6, 5
IDS = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0], np.int32)  # same images on one and across devices
DEVICES = (1, 2, 8)


def data(seed=0):
    rng = np.random.default_rng(seed)

    def rows(count):
        x = rng.normal(size=(count, WIDTH))
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    valid = rng.random((BATCH, BANK)) < 0.5
    valid[0] = False
    return rows(BATCH), rows(BATCH), rows(BANK), valid


def reference(queries, keys, scale, *, same=None, extra=None, valid=None):
    """(loss, accuracy, gradients of queries, keys, scale, extra) one row at a time, each over its own candidates."""
    queries, keys, scale = (torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in (queries, keys, scale))
    bank = torch.tensor(np.zeros((0, WIDTH)) if extra is None else extra.astype(np.float64), requires_grad=True)
    losses, hits = [], []
    for i in range(len(queries)):
        others = [j for j in range(len(keys)) if j != i and not (same is not None and same[i, j])]
        held = [j for j in range(len(bank)) if valid[i, j]]
        candidates = torch.cat([keys[[i]], keys[others], bank[held]])
        logits = scale * (candidates @ queries[i])
        losses.append(-torch.log_softmax(logits, dim=0)[0])
        hits.append(float(torch.argmax(logits) == 0))
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), np.mean(hits), [x.grad.numpy() for x in (queries, keys, scale, bank)]


def on(devices: int, function, shared: int):
    """`function` of row arguments and then `shared` whole ones, as a mean over `devices` devices."""
    mesh = make_mesh(devices)

    def run(*arguments):
        rows = [PartitionSpec(DATA_AXIS)] * (len(arguments) - shared) + [PartitionSpec()] * shared
        local = lambda *a: jax.tree.map(lambda x: jax.lax.pmean(x, DATA_AXIS), function(*a, axis=DATA_AXIS))  # noqa: E731
        return jax.shard_map(local, mesh=mesh, in_specs=tuple(rows), out_specs=PartitionSpec())(*arguments)

    return run


OPTIONS = {"plain": (False, False), "ids": (True, False), "extra": (False, True), "ids+extra": (True, True)}


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("option", OPTIONS)
def test_info_nce(option, devices):
    with_ids, with_extra = OPTIONS[option]
    queries, keys, extra, valid = data()
    scale = np.float32(7.5)

    def function(queries, keys, ids, valid, scale, extra, axis):
        more = {"extra": extra, "extra_valid": valid} if with_extra else {}
        return info_nce(queries, keys, scale, axis=axis, ids=ids if with_ids else None, **more)

    sharded = on(devices, function, shared=2)
    loss = jax.value_and_grad(lambda q, k, s, e: sharded(q, k, IDS, valid, s, e), argnums=(0, 1, 2, 3), has_aux=True)
    with jax.default_matmul_precision("highest"):
        (value, accuracy), grads = jax.jit(loss)(queries, keys, scale, extra)
    same = IDS[:, None] == IDS if with_ids else None
    expected, hits, expected_grads = reference(
        queries, keys, scale, same=same, extra=extra if with_extra else None, valid=valid
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(accuracy, hits, rtol=1e-6)
    if not with_extra:
        expected_grads[3] = np.zeros((BANK, WIDTH))
    for ours, theirs in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("with_ids", [False, True], ids=["plain", "ids"])
def test_symmetric_info_nce(with_ids, devices):
    a, b, _, _ = data(1)
    scale = np.float32(5.0)

    def function(a, b, ids, scale, axis):
        return symmetric_info_nce(a, b, scale, axis=axis, ids=ids if with_ids else None)

    sharded = on(devices, function, shared=1)
    loss = jax.value_and_grad(lambda a, b, s: sharded(a, b, IDS, s), argnums=(0, 1, 2), has_aux=True)
    with jax.default_matmul_precision("highest"):
        (value, accuracy), grads = jax.jit(loss)(a, b, scale)
    same = IDS[:, None] == IDS if with_ids else None
    ab, hits_ab, grads_ab = reference(a, b, scale, same=same)
    ba, hits_ba, grads_ba = reference(b, a, scale, same=same)
    np.testing.assert_allclose(value, (ab + ba) / 2, rtol=1e-5)
    np.testing.assert_allclose(accuracy, (hits_ab + hits_ba) / 2, rtol=1e-6)
    for ours, i, j in zip(grads, (0, 1, 2), (1, 0, 2), strict=True):
        np.testing.assert_allclose(ours, (grads_ab[i] + grads_ba[j]) / 2, rtol=1e-4, atol=1e-6)


def test_symmetric_info_nce_is_open_clips_loss():
    """open_clip's ClipLoss: (cross_entropy(logits_per_image, arange) + cross_entropy(logits_per_text, arange)) / 2."""
    rng = np.random.default_rng(2)
    image, text = (rng.normal(size=(BATCH, WIDTH)).astype(np.float32) for _ in range(2))
    t_image, t_text, t_scale = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (image, text, 2.6593))
    features = [torch.nn.functional.normalize(x, dim=-1) for x in (t_image, t_text)]
    per_image = t_scale.exp() * features[0] @ features[1].T
    labels = torch.arange(BATCH)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(per_image, labels) + cross_entropy(per_image.T, labels)) / 2
    expected.backward()

    def loss(image, text, log_scale):
        return symmetric_info_nce(normalise(image), normalise(text), jnp.exp(log_scale))[0]

    with jax.default_matmul_precision("highest"):
        value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(image, text, jnp.float32(2.6593))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for ours, theirs in zip(grads, (t_image, t_text, t_scale), strict=True):
        np.testing.assert_allclose(ours, theirs.grad, rtol=1e-4, atol=1e-6)


def test_known_values():
    eye = np.eye(4, dtype=np.float32)
    loss, accuracy = info_nce(eye, eye, np.float32(1.0))
    np.testing.assert_allclose(loss, np.log(1 + 3 / np.e), rtol=1e-6)
    assert accuracy == 1.0
    loss, accuracy = info_nce(eye, np.roll(eye, 1, axis=0), np.float32(1.0))
    np.testing.assert_allclose(loss, np.log(3 + np.e), rtol=1e-6)
    assert accuracy == 0.0


@pytest.mark.parametrize("axis_devices", [None, 8])
def test_no_negatives_at_all_is_zero_and_has_no_nan(axis_devices):
    """Every other row is of the same image and no bank slot counts: one candidate, loss 0, gradient 0."""
    queries, keys, extra, _ = data()
    ids, valid = np.zeros(BATCH, np.int32), np.zeros((BATCH, BANK), bool)

    def function(queries, keys, ids, valid, scale, extra, axis=None):
        return info_nce(queries, keys, scale, axis=axis, ids=ids, extra=extra, extra_valid=valid)

    run = on(axis_devices, function, shared=2) if axis_devices else function
    loss = jax.value_and_grad(lambda q, k, s, e: run(q, k, ids, valid, s, e), argnums=(0, 1, 2, 3), has_aux=True)
    (value, accuracy), grads = jax.jit(loss)(queries, keys, np.float32(9.0), extra)
    assert abs(value) < 1e-6 and accuracy == 1.0
    for g in grads:
        np.testing.assert_allclose(g, 0, atol=1e-6)


def test_half_precision_inputs_give_fp32_logits():
    queries, keys, _, _ = data()
    half = [jnp.asarray(x, jnp.bfloat16) for x in (queries, keys)]
    loss, accuracy = info_nce(*half, jnp.float32(14.0))
    assert loss.dtype == accuracy.dtype == jnp.float32
    expected, _, _ = reference(*(np.asarray(x, np.float32) for x in half), 14.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_normalise():
    rng = np.random.default_rng(3)
    x, cotangent = rng.normal(size=(2, 4, 6)), rng.normal(size=(4, 6))
    t = torch.tensor(x[0], requires_grad=True)
    expected = torch.nn.functional.normalize(t, dim=-1)
    (expected * torch.tensor(cotangent)).sum().backward()
    value, vjp = jax.vjp(normalise, jnp.asarray(x[0], jnp.float32))
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(vjp(jnp.asarray(cotangent, jnp.float32))[0], t.grad, rtol=1e-4, atol=1e-5)
    assert normalise(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32


def test_normalise_of_zero_is_finite():
    value, vjp = jax.vjp(normalise, jnp.zeros((2, 3)))
    np.testing.assert_array_equal(value, 0)
    assert np.all(np.isfinite(vjp(jnp.ones((2, 3)))[0]))
