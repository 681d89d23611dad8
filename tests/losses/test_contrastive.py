"""Contrastive losses against float64 NumPy and PyTorch, in value and gradient, on 1, 2 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec

from smke_jax.losses import pairs
from smke_jax.losses.collective import ALONE, Scope
from smke_jax.losses.contrastive import info_nce, normalise, sigmoid_loss, symmetric_info_nce
from smke_jax.losses.pairs import NOBODY, Side
from smke_jax.parallel.mesh import DATA_AXES, make_mesh

BATCH, WIDTH, BANK = 16, 6, 24
IDS = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0], np.int32)  # same images on one and across devices
BANK_IDS = np.array([NOBODY, 3, 77, 0] * 6, np.int32)
DEVICES = (1, 2, 4, 8)
IMPLEMENTATIONS = ("gather", "ring")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks so small that the ring cuts the rows of a device, unevenly at one and two devices."""
    monkeypatch.setattr(pairs, "BLOCK", 48)


def data(seed=0):
    rng = np.random.default_rng(seed)

    def rows(count):
        x = rng.normal(size=(count, WIDTH))
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    return rows(BATCH), rows(BATCH), rows(BANK)


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


def on(devices: int, function, impl: str, layout: str):
    """The mean over `devices` devices of `function`, whose arguments are split (r) or whole (w) as `layout` says."""
    scope = Scope(DATA_AXES, impl)
    local = lambda *a: jax.tree.map(lambda x: jax.lax.pmean(x, DATA_AXES), function(*a, scope=scope))  # noqa: E731
    where = tuple(PartitionSpec(DATA_AXES) if kind == "r" else PartitionSpec() for kind in layout)
    # 8 devices as a grid: the axes count as one.
    mesh = make_mesh(devices, fsdp_size=2 if devices == 8 else 1)
    return jax.shard_map(local, mesh=mesh, in_specs=where, out_specs=PartitionSpec())


def value_and_grad(function, *arguments, to):
    run = jax.jit(jax.value_and_grad(function, argnums=to, has_aux=True))
    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(*arguments))


def assert_near(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


# with ids?, the bank: none, split over the devices, or whole on each
OPTIONS = {"plain": (False, None), "ids": (True, None), "split bank": (False, "r"), "ids+whole bank": (True, "w")}


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("option", OPTIONS)
def test_info_nce(option, impl, devices):
    with_ids, bank = OPTIONS[option]
    queries, keys, extra = data()
    scale = np.float32(7.5)

    def function(queries, keys, ids, scale, extra, extra_ids, scope):
        more = {"bank": (Side(extra, extra_ids), ids, scope if bank == "r" else ALONE)} if bank else {}
        return info_nce(queries, keys, scale, scope=scope, ids=ids if with_ids else None, **more)

    sharded = on(devices, function, impl, "rrrw" + 2 * (bank or "w"))
    (value, accuracy), grads = value_and_grad(sharded, queries, keys, IDS, scale, extra, BANK_IDS, to=(0, 1, 3))
    same = IDS[:, None] == IDS if with_ids else None
    valid = (BANK_IDS != NOBODY) & (BANK_IDS != IDS[:, None])
    expected, hits, expected_grads = reference(
        queries, keys, scale, same=same, extra=extra if bank else None, valid=valid
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(accuracy, hits, rtol=1e-6)
    for ours, theirs in zip(grads, expected_grads[:3], strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_fixed_keys_change_no_other_gradient(impl, devices):
    queries, keys, _ = data()
    results = []
    for fixed in (False, True):
        function = lambda q, k, s, scope, f=fixed: info_nce(q, k, s, scope=scope, fixed_keys=f)  # noqa: E731
        sharded = on(devices, function, impl, "rrw")
        value, (d_queries, d_keys, d_scale) = value_and_grad(sharded, queries, keys, np.float32(7.5), to=(0, 1, 2))
        assert np.any(d_keys) != fixed
        results.append((value, d_queries, d_scale))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), *results)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("with_ids", [False, True], ids=["plain", "ids"])
def test_symmetric_info_nce(with_ids, impl, devices):
    a, b, _ = data(1)
    scale = np.float32(5.0)

    def function(a, b, ids, scale, scope):
        return symmetric_info_nce(a, b, scale, scope=scope, ids=ids if with_ids else None)

    sharded = on(devices, function, impl, "rrrw")
    (value, accuracy), grads = value_and_grad(sharded, a, b, IDS, scale, to=(0, 1, 3))
    same = IDS[:, None] == IDS if with_ids else None
    ab, hits_ab, grads_ab = reference(a, b, scale, same=same)
    ba, hits_ba, grads_ba = reference(b, a, scale, same=same)
    np.testing.assert_allclose(value, (ab + ba) / 2, rtol=1e-5)
    np.testing.assert_allclose(accuracy, (hits_ab + hits_ba) / 2, rtol=1e-6)
    for ours, i, j in zip(grads, (0, 1, 2), (1, 0, 2), strict=True):
        assert_near(ours, (grads_ab[i] + grads_ba[j]) / 2)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("with_ids", [False, True], ids=["plain", "ids"])
def test_sigmoid_loss(with_ids, impl, devices):
    """SigLIP's pseudocode: -sum(log_sigmoid(labels · logits)) / n, labels 1 on the diagonal and -1 off it."""
    a, b, _ = data(2)
    t = [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in (a, b, 6.0, -3.0)]
    labels = 2 * torch.eye(BATCH) - 1
    same = torch.tensor((IDS[:, None] == IDS) & ~np.eye(BATCH, dtype=bool))
    logits = t[2] * t[0] @ t[1].T + t[3]
    each = torch.nn.functional.logsigmoid(labels * logits)
    expected = -(each.masked_fill(same, 0) if with_ids else each).sum() / BATCH
    expected.backward()

    def function(a, b, ids, scale, bias, scope):
        return sigmoid_loss(a, b, scale, bias, scope=scope, ids=ids if with_ids else None)

    sharded = on(devices, function, impl, "rrrww")
    (value, accuracy), grads = value_and_grad(sharded, a, b, IDS, np.float32(6.0), np.float32(-3.0), to=(0, 1, 3, 4))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for ours, theirs in zip(grads, t, strict=True):
        assert_near(ours, theirs.grad.numpy())
    others = np.where(np.eye(BATCH, dtype=bool) | (same.numpy() & with_ids), -np.inf, logits.detach().numpy())
    np.testing.assert_allclose(accuracy, np.mean(np.diagonal(logits.detach()) > others.max(axis=1)), rtol=1e-6)


def test_auto_takes_the_ring_from_a_size_on(monkeypatch):
    """The two forms are told apart by what they compile to: the ring has loops."""
    a, b, _ = data()

    def loops(impl):
        function = lambda a, b, scope: symmetric_info_nce(a, b, jnp.float32(5.0), scope=scope)  # noqa: E731
        return str(jax.make_jaxpr(on(4, function, impl, "rr"))(a, b)).count("scan[")

    assert (loops("gather"), loops("auto")) == (0, 0) and loops("ring") > 0
    monkeypatch.setattr(pairs, "RING_FROM", BATCH * BATCH // 4 - 1)
    assert loops("auto") == loops("ring")
    monkeypatch.setattr(pairs, "RING_FROM", BATCH * BATCH // 4)
    assert loops("auto") == 0


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


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_negatives_at_all_is_zero_and_has_no_nan(impl, devices):
    """Every other row is of the same image and no bank slot counts: one candidate, loss 0, gradient 0."""
    queries, keys, extra = data()
    ids, nobody = np.zeros(BATCH, np.int32), np.full(BANK, NOBODY, np.int32)

    def function(queries, keys, ids, scale, extra, extra_ids, scope):
        return info_nce(queries, keys, scale, scope=scope, ids=ids, bank=(Side(extra, extra_ids), ids, scope))

    run = on(devices, function, impl, "rrrwrr")
    (value, accuracy), grads = value_and_grad(run, queries, keys, ids, np.float32(9.0), extra, nobody, to=(0, 1, 3))
    assert abs(value) < 1e-6 and accuracy == 1.0
    for g in grads:
        np.testing.assert_allclose(g, 0, atol=1e-6)


def test_equal_embeddings_are_not_right():
    """A collapsed model finds nothing: a tie is no hit."""
    same = np.ones((4, 2), np.float32) / np.sqrt(2).astype(np.float32)
    for impl in IMPLEMENTATIONS:
        assert info_nce(same, same, np.float32(5.0), scope=Scope(None, impl))[1] == 0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_half_precision_inputs_give_fp32_logits(impl):
    half = [jnp.asarray(x, jnp.bfloat16) for x in data()[:2]]
    function = lambda q, k, s: info_nce(q, k, s, scope=Scope(None, impl))  # noqa: E731
    (loss, accuracy), grads = value_and_grad(function, *half, jnp.float32(14.0), to=(0, 1))
    assert loss.dtype == accuracy.dtype == jnp.float32 and grads[0].dtype == jnp.bfloat16
    expected, _, expected_grads = reference(*(np.asarray(x, np.float32) for x in half), 14.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    for ours, theirs in zip(grads, expected_grads, strict=False):
        assert_near(np.asarray(ours, np.float32), theirs, 1e-2)


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
