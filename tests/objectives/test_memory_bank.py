"""The bank against a NumPy ring, the loss on it against float64 PyTorch, and its content after real train steps."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from smke_jax.errors import UserError
from smke_jax.networks.base import Network
from smke_jax.objectives.base import Scope
from smke_jax.objectives.memory_bank import RANDOM, UNFILLED, empty_bank, negatives, push, random_bank
from smke_jax.objectives.target_itc import target_itc
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.passes.base import Pass
from smke_jax.training.recipe import Recipe, make_recipe
from smke_jax.training.step import init_state, make_train_step, run_terms

WIDTH, BATCH = 4, 8


def batches(count, batch, width=WIDTH, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.normal(size=(batch, width)).astype(np.float32), rng.integers(0, 20, batch).astype(np.int32)


@pytest.mark.parametrize("size,batch,steps", [(6, 3, 5), (7, 3, 8), (10, 4, 1), (5, 5, 3), (8, 5, 7)])
def test_push_is_a_ring(size, batch, steps):
    """After every push: what a plain Python ring holds, in place; sizes that do not divide by the batch included."""
    bank, ring, head = empty_bank(size, WIDTH), [(np.zeros(WIDTH), UNFILLED)] * size, 0
    step = jax.jit(push)
    for features, ids in batches(steps, batch):
        bank = step(bank, features, ids)
        for row in range(batch):
            ring[head] = (features[row], ids[row])
            head = (head + 1) % size
        np.testing.assert_array_equal(bank.features, np.stack([f for f, _ in ring]))
        np.testing.assert_array_equal(bank.ids, [i for _, i in ring])
        assert bank.head == head
    assert bank.ids.dtype == bank.head.dtype == jnp.int32


def test_the_oldest_leave_first():
    bank, held = empty_bank(7, WIDTH), collections.deque(maxlen=7)
    for features, ids in batches(6, 3, seed=1):
        bank = push(bank, features, ids)
        held.extend(zip(map(tuple, features), ids, strict=True))
        filled = np.asarray(bank.ids) != UNFILLED
        now = zip(map(tuple, np.asarray(bank.features)[filled]), np.asarray(bank.ids)[filled], strict=True)
        assert sorted(now) == sorted(held)


def test_negatives_are_the_bank_where_it_is():
    bank = push(empty_bank(5, WIDTH), np.ones((3, WIDTH), np.float32), np.array([4, 7, 4]))
    scope, ids = Scope("devices"), jnp.array([4, 7, 0])
    stored, queries, spread = negatives(bank, ids, 5, scope)
    assert stored.features is bank.features and stored.ids is bank.ids and queries is ids
    assert spread.axis is None and negatives(bank, ids, 20, scope)[2] == scope  # 15 slots are on other devices
    # An image numbered like a marker would be taken for one; images are numbered from 0.
    assert UNFILLED < 0 and RANDOM < 0 and UNFILLED != RANDOM


def test_random_content_counts_from_the_start_and_is_overwritten():
    """Spec 15: uniform [0, 1) vectors, normalised."""
    bank = random_bank(jax.random.key(0), 200, WIDTH)
    features = np.asarray(bank.features)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    assert np.all(features >= 0) and len(np.unique(features)) > 700
    assert np.all(np.asarray(bank.ids) == RANDOM) and bank.head == 0
    assert np.any(features != random_bank(jax.random.key(1), 200, WIDTH).features)
    pushed = push(bank, np.ones((3, WIDTH), np.float32), np.arange(3))
    np.testing.assert_array_equal(pushed.ids[:3], [0, 1, 2])
    np.testing.assert_array_equal(pushed.features[3:], features[3:])


# ---- in the loss


def made_up(seed, ids):
    rng = np.random.default_rng(seed)
    reps = {name: rng.normal(size=(len(ids), WIDTH)).astype(np.float32) for name in ("image/head", "text/head")}
    return reps | {"target/cls": 3 * rng.normal(size=(len(ids), WIDTH)).astype(np.float32), "id": np.asarray(ids)}


def shapes(reps):
    return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in reps.items()}


def reference(reps, stored, log_scale, masked):
    """-> (loss, tensors with gradients); `stored`: pairs (un-normalised target, id or None) that a bank should hold."""
    t = {k: torch.tensor(v.astype(np.float64), requires_grad=True) for k, v in reps.items() if k != "id"}
    log_scale = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    unit = {k: v / v.norm(dim=1, keepdim=True) for k, v in t.items()}
    ids, losses = reps["id"], []
    for side in ("image/head", "text/head"):
        for i in range(len(ids)):
            rows = [i] + [j for j in range(len(ids)) if j != i and not (masked and ids[j] == ids[i])]
            candidates = [unit["target/cls"][rows]]
            for feature, image in stored:
                if image is None or image != ids[i]:
                    candidates.append(torch.tensor(feature / np.linalg.norm(feature))[None])
            logits = log_scale.exp() * torch.cat(candidates) @ unit[side][i]
            losses.append(-torch.log_softmax(logits, 0)[0])
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), t | {"scale": log_scale}


@pytest.mark.parametrize("random,masked,devices", [
    (False, False, 1), (False, False, 8), (False, True, 8), (True, True, 8),
])  # fmt: skip
def test_target_itc_with_a_bank(random, masked, devices):
    """Ids repeat within the batch and between batch and bank; the bank of 21 has wrapped around once (3 · 8 > 21)."""
    rng = np.random.default_rng(0)
    size, pushes = (40, 3) if random else (21, 3)
    same_image = "masked" if masked else "negative"
    term = target_itc(bank_size=size, random_bank=random, learnable_scale=True, same_image=same_image)
    reps = made_up(9, rng.integers(0, 6, BATCH))
    params, bank = term.init(jax.random.key(0), shapes(reps))
    stored = [(np.asarray(f, np.float64), None) for f in bank.features] if random else []
    pushed = []
    for seed in range(pushes):
        old = made_up(seed, rng.integers(0, 9, BATCH))
        bank = term.update(bank, old)
        pushed += list(zip(old["target/cls"].astype(np.float64), old["id"], strict=True))
    stored = pushed + stored[len(pushed) :] if random else pushed[-size:]
    log_scale = float(params["logit_scale"]["head"]) - 0.5

    mesh = make_mesh(devices)
    recipe = Recipe({}, (), {"t": term}, {})
    batch = put_batch(reps, mesh)

    @jax.jit
    def run(scale, features, batch, bank):
        def loss(scale, features):
            all_reps = {**features, "id": batch["id"]}
            losses, metrics = run_terms(
                recipe, mesh, {"t": {"logit_scale": {"head": scale}}}, {"t": bank}, all_reps, key=jax.random.key(0)
            )
            return losses["t"], metrics

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(scale, features)

    with jax.default_matmul_precision("highest"):
        features = {k: v for k, v in batch.items() if k != "id"}
        (value, metrics), (d_scale, d_reps) = run(jnp.float32(log_scale), features, batch, bank)
    expected, tensors = reference(reps, stored, log_scale, masked)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose((metrics["t/loss_image"] + metrics["t/loss_text"]) / 2, expected, rtol=1e-5)
    assert metrics["t/bank_filled"] == 1
    np.testing.assert_allclose(d_scale, tensors["scale"].grad, rtol=1e-4)
    assert not np.any(d_reps.pop("target/cls")), "targets are data"
    for name, gradient in d_reps.items():
        np.testing.assert_allclose(gradient, tensors[name].grad, rtol=1e-4, atol=1e-6, err_msg=name)


def test_an_unfilled_bank_changes_nothing():
    reps = made_up(0, np.arange(BATCH))
    with_bank, without = target_itc(bank_size=16), target_itc()
    _, bank = with_bank.init(jax.random.key(0), shapes(reps))
    value, metrics = with_bank.value({}, bank, reps, Scope(None))
    np.testing.assert_allclose(value, without.value({}, (), reps, Scope(None))[0], rtol=1e-6)
    assert metrics["bank_filled"] == 0
    _, metrics = with_bank.value({}, with_bank.update(bank, reps), reps, Scope(None))
    assert metrics["bank_filled"] == 0.5


def test_what_the_bank_stores_is_the_normalised_target():
    reps = made_up(0, np.arange(BATCH) + 5)
    term = target_itc(bank_size=20)
    _, bank = term.init(jax.random.key(0), shapes(reps))
    bank = term.update(bank, reps)
    target = reps["target/cls"]
    expected = target / np.linalg.norm(target, axis=1, keepdims=True)
    np.testing.assert_allclose(bank.features[:BATCH], expected, rtol=1e-5)
    np.testing.assert_array_equal(bank.ids, list(range(5, 13)) + [UNFILLED] * 12)


def test_no_row_meets_its_own_target_in_a_bank_larger_than_the_data():
    """12 images, a bank of 50: after three epochs each image's target is there four times, and never a negative."""
    images, targets = 12, np.random.default_rng(3).normal(size=(12, WIDTH)).astype(np.float32)
    term = target_itc(bank_size=50)
    rng = np.random.default_rng(4)
    order = np.concatenate([rng.permutation(images) for _ in range(6)]).reshape(-1, BATCH)
    rows = [
        {"id": ids, "target/cls": targets[ids], "image/head": targets[ids], "text/head": targets[ids]} for ids in order
    ]
    _, bank = term.init(jax.random.key(0), shapes(rows[0]))
    for reps in rows[:-1]:
        bank = term.update(bank, reps)
    unit = targets / np.linalg.norm(targets, axis=1, keepdims=True)
    own = unit[rows[-1]["id"]]
    similarity = own @ np.asarray(bank.features).T
    assert np.any(similarity > 0.9999), "the bank does hold targets of this batch: the test tests something"
    # Students that predict their targets exactly find them, so nothing in the bank ties with the right answer.
    _, metrics = term.value({}, bank, rows[-1], Scope(None))
    assert metrics["accuracy_image"] == metrics["accuracy_text"] == 1
    assert metrics["loss_image"] < np.log(2)


def test_a_bank_smaller_than_the_batch_is_refused():
    reps = made_up(0, np.arange(BATCH))
    with pytest.raises(UserError, match=f"target_itc.bank_size 7 is smaller than the batch of {BATCH}"):
        target_itc(bank_size=7).init(jax.random.key(0), shapes(reps))
    target_itc(bank_size=BATCH).init(jax.random.key(0), shapes(reps))


# ---- in the step


def linear(name, names, trained):
    """A network with a matrix per representation, and its pass: enough to train, and quick to compile."""

    def init(key, specs):
        keys = jax.random.split(key, len(names))
        return {n: jax.random.normal(k, (5, WIDTH)) for n, k in zip(names, keys, strict=True)}

    run = lambda params, arrays, key, train: {n: arrays["x"] @ params[name][n] for n in names}  # noqa: E731
    return Network(init, None, trained=trained), Pass(name, (name,), ("x",), names, run)


def test_the_bank_is_the_same_on_1_and_8_devices_after_real_steps():
    teacher, target = linear("teacher", ("target/cls",), False)
    student, heads = linear("student", ("image/head", "text/head"), True)
    recipe = make_recipe(
        {"teacher": teacher, "student": student}, (target, heads), {"target_itc": target_itc(bank_size=21)},
        {"target_itc": lambda progress: 1.0}, batch=("x", "id"),
    )  # fmt: skip
    tx = optax.adam(1e-2)
    frozen = {"teacher": teacher.init(jax.random.key(5), None)}
    data = [{"x": np.random.default_rng(i).normal(size=(BATCH, 5)).astype(np.float32),
             "id": np.random.default_rng(i).integers(0, 9, BATCH).astype(np.int32)} for i in range(5)]  # fmt: skip
    states = []
    for devices in (1, 8):
        mesh = make_mesh(devices)
        state = init_state(recipe, tx, mesh, data[0], seed=0)
        step = make_train_step(recipe, tx, mesh, total_steps=10)
        for batch in data:
            state, metrics = step(state, frozen, put_batch(batch, mesh))
        assert np.isfinite(metrics["loss"])
        states.append(jax.device_get(state))
    one, eight = states
    np.testing.assert_array_equal(eight.slots["target_itc"].ids, one.slots["target_itc"].ids)
    assert eight.slots["target_itc"].head == one.slots["target_itc"].head == 5 * BATCH % 21
    np.testing.assert_allclose(eight.slots["target_itc"].features, one.slots["target_itc"].features, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), eight.params, one.params)

    ring_ids, ring_features = np.full(21, UNFILLED), np.zeros((21, WIDTH))
    for n, (batch, row) in enumerate((batch, row) for batch in data for row in range(BATCH)):
        target = batch["x"][row] @ np.asarray(frozen["teacher"]["target/cls"])
        ring_ids[n % 21], ring_features[n % 21] = batch["id"][row], target / np.linalg.norm(target)
    np.testing.assert_array_equal(one.slots["target_itc"].ids, ring_ids)
    np.testing.assert_allclose(one.slots["target_itc"].features, ring_features, atol=1e-5)
