"""Contrastive losses against float64 PyTorch, in value, accuracy and gradient, as gather and ring, on 1, 2, 8 devices.

All cases of one implementation on one number of devices are compiled as one program.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from over_devices import DEVICES, assert_near, run_together, spread, tensors, unit_rows

from smke_jax.losses import ring, totals
from smke_jax.losses.collective import ALONE, HALF, Scope, gather
from smke_jax.losses.contrastive import (
    info_nce,
    multi_positive_info_nce,
    multi_positive_sigmoid_loss,
    normalise,
    sigmoid_loss,
    symmetric_info_nce,
)
from smke_jax.losses.pairs import NOBODY, Rows
from smke_jax.studies.plan.traffic import traffic

BATCH, WIDTH, BANK = 16, 6, 24
IDS = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0], np.int32)  # same images on one and across devices
BANK_IDS = np.array([NOBODY, 3, 77, 0] * 6, np.int32)
SCALE, BIAS = np.float32(7.5), np.float32(-3.0)
IMPLEMENTATIONS = ("gather", "ring")

rng = np.random.default_rng(0)
A, B, EXTRA = unit_rows(rng, BATCH, WIDTH), unit_rows(rng, BATCH, WIDTH), unit_rows(rng, BANK, WIDTH)


class Arrays(NamedTuple):
    a: jax.Array
    b: jax.Array
    scale: jax.Array
    bias: jax.Array
    ids: jax.Array
    bank: jax.Array
    bank_ids: jax.Array


ARRAYS = Arrays(A, B, SCALE, BIAS, IDS, EXTRA, BANK_IDS)
GRADIENTS = (0, 1, 2, 3)  # by a, b, scale, bias


def plain(x, scope):
    return info_nce(x.a, x.b, x.scale, scope=scope)


def with_ids(x, scope):
    return info_nce(x.a, x.b, x.scale, scope=scope, ids=x.ids)


def with_fixed_keys(x, scope):
    return info_nce(x.a, x.b, x.scale, scope=scope, fixed_keys=True)


def with_spread_bank(x, scope):
    return info_nce(x.a, x.b, x.scale, scope=scope, bank=(Rows(x.bank, x.bank_ids), x.ids, scope))


def with_ids_and_whole_bank(x, scope):
    return info_nce(x.a, x.b, x.scale, scope=scope, ids=x.ids, bank=(Rows(x.bank, x.bank_ids), x.ids, ALONE))


def without_negatives(x, scope):
    """All rows are of the same image, and no slot of the bank counts."""
    ids, nobody = jnp.zeros_like(x.ids), jnp.full_like(x.bank_ids, NOBODY)
    return info_nce(x.a, x.b, x.scale, scope=scope, ids=ids, bank=(Rows(x.bank, nobody), ids, scope))


def symmetric(x, scope):
    return symmetric_info_nce(x.a, x.b, x.scale, scope=scope)


def symmetric_with_ids(x, scope):
    return symmetric_info_nce(x.a, x.b, x.scale, scope=scope, ids=x.ids)


def sigmoid(x, scope):
    return sigmoid_loss(x.a, x.b, x.scale, x.bias, scope=scope)


def sigmoid_with_ids(x, scope):
    return sigmoid_loss(x.a, x.b, x.scale, x.bias, scope=scope, ids=x.ids)


def multi_positive(x, scope):
    return multi_positive_info_nce(x.a, x.b, x.scale, scope=scope, ids=x.ids)


def multi_positive_sigmoid(x, scope):
    return multi_positive_sigmoid_loss(x.a, x.b, x.scale, x.bias, scope=scope, ids=x.ids)


CASES = (
    plain, with_ids, with_fixed_keys, with_spread_bank, with_ids_and_whole_bank, without_negatives,
    symmetric, symmetric_with_ids, sigmoid, sigmoid_with_ids,
    multi_positive, multi_positive_sigmoid,
)  # fmt: skip
WHOLE = {"with_ids_and_whole_bank": (2, 3, 5, 6)}  # scale and bias are whole everywhere


@pytest.fixture(scope="module", params=[(impl, devices) for impl in IMPLEMENTATIONS for devices in DEVICES], ids=str)
def outcomes(request):
    """{case: ((loss, accuracy), gradients)} of all cases."""
    impl, devices = request.param
    runs = {}
    for case in CASES:
        function = lambda *arrays, scope, case=case: case(Arrays(*arrays), scope)  # noqa: E731
        runs[case.__name__] = spread(devices, function, impl=impl, whole=WHOLE.get(case.__name__, (2, 3)))
    with pytest.MonkeyPatch.context() as patch:
        # Blocks so small that the ring cuts the rows of a device, on one and two devices into unequal chunks.
        patch.setattr(ring, "BLOCK", 48)
        return run_together(runs, ARRAYS, to=GRADIENTS)


def assert_outcome(outcome, expected):
    (loss, accuracy), gradients = outcome
    expected_loss, expected_accuracy, expected_gradients = expected
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(accuracy, expected_accuracy, rtol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert_near(ours, theirs)


@functools.cache
def row_by_row(with_ids: bool, with_bank: bool):
    """(loss, accuracy, gradients) of info_nce in PyTorch, one query at a time over its own candidates alone."""
    a, b, scale = tensors(A, B, SCALE)
    losses, right = [], []
    for i in range(BATCH):
        negatives = [b[j] for j in range(BATCH) if j != i and not (with_ids and IDS[i] == IDS[j])]
        if with_bank:
            counts = (BANK_IDS != NOBODY) & (BANK_IDS != IDS[i])
            negatives += list(torch.tensor(EXTRA[counts].astype(np.float64)))
        logits = scale * (torch.stack([b[i], *negatives]) @ a[i])
        losses.append(-torch.log_softmax(logits, dim=0)[0])
        right.append(float(torch.argmax(logits) == 0))
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), np.mean(right), [a.grad.numpy(), b.grad.numpy(), scale.grad.numpy(), np.zeros(())]


@pytest.mark.parametrize(
    "case,with_ids,with_bank",
    [
        ("plain", False, False),
        ("with_ids", True, False),
        ("with_spread_bank", False, True),
        ("with_ids_and_whole_bank", True, True),
    ],
)
def test_info_nce(outcomes, case, with_ids, with_bank):
    assert_outcome(outcomes[case], row_by_row(with_ids, with_bank))


def test_fixed_keys_get_no_gradient_and_change_no_other(outcomes):
    loss, accuracy, (by_a, by_b, by_scale, by_bias) = row_by_row(False, False)
    assert np.any(by_b)
    assert_outcome(outcomes["with_fixed_keys"], (loss, accuracy, (by_a, np.zeros_like(by_b), by_scale, by_bias)))


def test_no_negatives_at_all_is_zero_and_has_no_nan(outcomes):
    """With its own key as the only candidate, a query is always right: loss 0, gradient 0."""
    (loss, accuracy), gradients = outcomes["without_negatives"]
    assert abs(loss) < 1e-6 and accuracy == 1.0
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


def same_image(with_ids: bool) -> torch.Tensor:
    """Off-diagonal pairs of the same image, where these matter."""
    return torch.tensor((IDS[:, None] == IDS) & ~np.eye(BATCH, dtype=bool) & with_ids)


def accuracy_of(logits: torch.Tensor) -> float:
    negatives = logits.masked_fill(torch.eye(BATCH, dtype=torch.bool), -torch.inf)
    return (logits.diagonal() > negatives.amax(dim=1)).double().mean().item()


@pytest.mark.parametrize("case,with_ids", [("symmetric", False), ("symmetric_with_ids", True)])
def test_symmetric_info_nce_is_open_clips_loss(outcomes, case, with_ids):
    """open_clip's ClipLoss: (cross_entropy(logits_per_image, arange) + cross_entropy(logits_per_text, arange)) / 2."""
    a, b, scale = tensors(A, B, SCALE)
    logits = (scale * a @ b.T).masked_fill(same_image(with_ids), -torch.inf)
    labels = torch.arange(BATCH)
    cross_entropy = torch.nn.functional.cross_entropy
    loss = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    loss.backward()
    accuracy = (accuracy_of(logits) + accuracy_of(logits.T)) / 2
    gradients = [a.grad.numpy(), b.grad.numpy(), scale.grad.numpy(), np.zeros(())]
    assert_outcome(outcomes[case], (loss.item(), accuracy, gradients))


@pytest.mark.parametrize("case,with_ids", [("sigmoid", False), ("sigmoid_with_ids", True)])
def test_sigmoid_loss_is_siglips(outcomes, case, with_ids):
    """SigLIP's pseudocode: -sum(log_sigmoid(labels · logits)) / n, labels 1 on the diagonal and -1 off it."""
    a, b, scale, bias = tensors(A, B, SCALE, BIAS)
    logits = scale * a @ b.T + bias
    each = torch.nn.functional.logsigmoid((2 * torch.eye(BATCH) - 1) * logits)
    loss = -each.masked_fill(same_image(with_ids), 0).sum() / BATCH
    loss.backward()
    accuracy = accuracy_of(logits.masked_fill(same_image(with_ids), -torch.inf))
    assert_outcome(outcomes[case], (loss.item(), accuracy, [x.grad.numpy() for x in (a, b, scale, bias)]))


def test_multi_positive_info_nce_is_supcons(outcomes):
    """Khosla et al., eq. 2: -1/|P(i)| Σ over p of P(i) of log softmax of p; both directions, one query at a time."""
    a, b, scale = tensors(A, B, SCALE)
    losses, right = [], []
    for queries, keys in ((a, b), (b, a)):
        for i in range(BATCH):
            positives = np.flatnonzero(IDS == IDS[i])
            logits = scale * keys @ queries[i]
            losses.append(-sum(logits[p] - torch.logsumexp(logits, dim=0) for p in positives) / len(positives))
            right.append(float(logits[i] > logits[IDS != IDS[i]].max()))
    loss = torch.stack(losses).mean()
    loss.backward()
    gradients = [a.grad.numpy(), b.grad.numpy(), scale.grad.numpy(), np.zeros(())]
    assert_outcome(outcomes["multi_positive"], (loss.item(), np.mean(right), gradients))
    assert 0 < np.mean(right) < 1


def test_multi_positive_sigmoid_loss_has_the_label_1_for_the_same_image(outcomes):
    a, b, scale, bias = tensors(A, B, SCALE, BIAS)
    logits = scale * a @ b.T + bias
    labels = torch.tensor(np.where(IDS[:, None] == IDS, 1.0, -1.0))
    loss = -torch.nn.functional.logsigmoid(labels * logits).sum() / BATCH
    loss.backward()
    accuracy = accuracy_of(logits.masked_fill(same_image(True), -torch.inf))
    gradients = [x.grad.numpy() for x in (a, b, scale, bias)]
    assert_outcome(outcomes["multi_positive_sigmoid"], (loss.item(), accuracy, gradients))


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_embeddings_that_travel_in_half_are_rounded_once(impl, devices):
    """`b` travels.  The reference compares `a` with `b` as bfloat16 has it, and each row with its own `b` as it is."""
    case = lambda a, b, scale, scope: symmetric_info_nce(a, b, scale, scope=scope)  # noqa: E731
    run = spread(devices, case, impl=impl, dtype=HALF, whole=(2,))
    (loss, _), (by_a, by_b, by_scale) = run_together({"": run}, (A, B, SCALE), to=(0, 1, 2))[""]

    sent = np.asarray(jnp.asarray(B, jnp.bfloat16), np.float64)
    assert np.abs(sent - B).max() > 1e-4, "nothing was rounded"
    a, own, sent, scale = tensors(A, B, sent, SCALE)
    same = torch.eye(BATCH, dtype=torch.bool)
    logits = scale * torch.where(same, a @ own.T, a @ sent.T)
    logits.retain_grad()
    labels, cross_entropy = torch.arange(BATCH), torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    assert_near(by_a, a.grad.numpy())
    assert_near(by_scale, scale.grad.numpy())
    # A device's share of the gradient by `sent` is rounded, and then the sum: each by at most 2^-8 of the shares.
    shares = scale.item() * (logits.grad.abs() * ~same).T @ a.abs()
    difference = np.abs(by_b - (own.grad + sent.grad).numpy())
    assert (difference <= 2 * 2.0**-8 * shares.detach().numpy() + 1e-6).all() and difference.max() > 1e-6


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_embeddings_in_half_take_half_of_the_bytes(impl):
    """The loss alone: what travels is `b` with the ids, and little more."""

    def sent(dtype, width):
        case = lambda a, b, scope: symmetric_info_nce(a, b, jnp.float32(5.0), scope=scope)  # noqa: E731
        shape = jax.ShapeDtypeStruct((BATCH, width), jnp.float32)
        compiled = jax.jit(spread(8, case, impl=impl, dtype=dtype)).lower(shape, shape).compile()
        return traffic(compiled.as_text()).sent[{"gather": "all-gather", "ring": "collective-permute"}[impl]]

    wide = {dtype: sent(dtype, 64) - sent(dtype, 32) for dtype in ("float32", HALF)}
    assert wide["float32"] == 2 * wide[HALF] > 0


def test_what_is_no_float32_travels_as_it_is():
    given = np.arange(16, dtype=np.int32) + 2**20, np.full((16, 1), 1.5, jnp.bfloat16)
    both = lambda x, y, scope: (gather(x, scope), gather(y, scope))  # noqa: E731
    for dtype in ("float32", HALF):
        ids, rows = jax.jit(spread(8, lambda x, y, scope: both(x, y, scope), dtype=dtype))(*given)
        assert np.array_equal(ids, given[0]) and np.array_equal(rows, given[1])


def test_totals_go_to_the_devices_of_their_rows_alone():
    """Each device gets, from each other one, both totals of its own two rows."""
    case = lambda a, b, scope: symmetric_info_nce(a, b, jnp.float32(5.0), scope=scope)  # noqa: E731
    found = traffic(jax.jit(spread(8, case, impl="gather")).lower(A, B).compile().as_text())
    assert found.sent["all-to-all"] == 7 * 2 * 2 * 4
    assert found.sent["all-gather"] == 7 * 2 * (WIDTH + 1) * 4  # embeddings and ids


def test_auto_takes_the_ring_from_a_size_on(monkeypatch):
    """The two forms are told apart by what they compile to: the ring has loops."""

    def loops(impl):
        function = lambda a, b, scope: symmetric_info_nce(a, b, jnp.float32(5.0), scope=scope)  # noqa: E731
        return str(jax.make_jaxpr(spread(4, function, impl=impl))(A, B)).count("scan[")

    assert (loops("gather"), loops("auto")) == (0, 0) and loops("ring") > 0
    monkeypatch.setattr(totals, "RING_FROM", BATCH * BATCH // 4 - 1)
    assert loops("auto") == loops("ring")
    monkeypatch.setattr(totals, "RING_FROM", BATCH * BATCH // 4)
    assert loops("auto") == 0


def test_known_values():
    run = jax.jit(lambda keys: info_nce(np.eye(4, dtype=np.float32), keys, jnp.float32(1.0)))
    loss, accuracy = run(np.eye(4, dtype=np.float32))
    np.testing.assert_allclose(loss, np.log(1 + 3 / np.e), rtol=1e-6)
    assert accuracy == 1.0
    loss, accuracy = run(np.roll(np.eye(4, dtype=np.float32), 1, axis=0))
    np.testing.assert_allclose(loss, np.log(3 + np.e), rtol=1e-6)
    assert accuracy == 0.0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_equal_embeddings_are_not_right(impl):
    """A collapsed model finds nothing: a tie is no hit."""
    same = np.full((4, 2), np.sqrt(0.5), np.float32)
    _, accuracy = jax.jit(lambda x: info_nce(x, x, jnp.float32(5.0), scope=Scope(None, impl)))(same)
    assert accuracy == 0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_half_precision_inputs_give_fp32_logits(impl):
    half = [jnp.asarray(x, jnp.bfloat16) for x in (A, B)]
    case = lambda a, b, scale: info_nce(a, b, scale, scope=Scope(None, impl))  # noqa: E731
    (loss, accuracy), (by_a, by_b, _) = run_together({"": case}, (*half, SCALE), to=(0, 1, 2))[""]
    assert loss.dtype == accuracy.dtype == np.float32 and by_a.dtype == by_b.dtype == jnp.bfloat16
    a, b = tensors(*(np.asarray(x, np.float32) for x in half))
    expected = torch.nn.functional.cross_entropy(float(SCALE) * a @ b.T, torch.arange(BATCH))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-4)
    assert_near(np.asarray(by_a, np.float32), a.grad.numpy(), 1e-2)
    assert_near(np.asarray(by_b, np.float32), b.grad.numpy(), 1e-2)


def test_normalise():
    rng = np.random.default_rng(3)
    x, cotangent = rng.normal(size=(2, 4, 6)).astype(np.float32)
    (t,) = tensors(x)
    expected = torch.nn.functional.normalize(t, dim=-1)
    (expected * torch.tensor(cotangent)).sum().backward()

    @jax.jit
    def run(x, cotangent):
        value, vjp = jax.vjp(normalise, x)
        return value, vjp(cotangent)[0]

    value, gradient = run(x, cotangent)
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, t.grad, rtol=1e-4, atol=1e-5)
    value, gradient = run(np.zeros_like(x), cotangent)
    np.testing.assert_array_equal(value, 0)
    assert np.all(np.isfinite(gradient))
    assert jax.eval_shape(normalise, jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32
