"""The momentum encoder in whole train steps: against a run written out in PyTorch, and where its average lies."""

import functools

import jax
import numpy as np
import optax
import pytest
import torch
from test_step_at_scale import VOCAB, build, config
from test_step_at_scale import batches as real_batches

from smke_jax.errors import UserError
from smke_jax.objectives.bank_itc import bank_itc
from smke_jax.parallel import rules
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.passes.base import Pass
from smke_jax.passes.momentum import momentum_pass
from smke_jax.training.optimizer import build_optimizer
from smke_jax.training.recipe import Recipe, build_recipe
from smke_jax.training.step import abstract_state, init_state, make_train_step

BATCH, INPUT, WIDTH, BANK, STEPS, DECAY, RATE = 8, 5, 4, 21, 5, 0.8, 0.3
SIDES = ("image", "text")


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        x = {side: rng.normal(size=(BATCH, INPUT)).astype(np.float32) for side in SIDES}
        yield x | {"id": rng.integers(0, 12, BATCH).astype(np.int32)}


def student():
    """A matrix per modality."""

    def init(key, batch):
        keys = jax.random.split(key)
        return {side: jax.random.normal(k, (INPUT, WIDTH)) for side, k in zip(SIDES, keys, strict=True)}

    def run(params, batch, key, train):
        return {f"{side}/out": batch[side] @ params[side] for side in SIDES}

    return Pass("student", ("image/out", "text/out"), True, init, run)


@functools.cache
def trained(devices):
    """(parameters at the start, the state after every step, the losses)."""
    recipe = Recipe(
        (momentum_pass(student(), DECAY), student()),
        {"t": bank_itc(("out",), "momentum/", BANK)},
        {"t": lambda progress: 1.0},
    )
    tx, mesh = optax.sgd(RATE), make_mesh(devices)
    state = init_state(recipe, tx, mesh, next(batches()), seed=0)
    start, states, losses = jax.device_get(state.params), [], []
    step = make_train_step(recipe, tx, mesh, total_steps=STEPS)
    with jax.default_matmul_precision("highest"):
        for batch in batches():
            state, metrics = step(state, {}, put_batch(batch, mesh))
            states.append(jax.device_get((state.params, state.ema, state.slots)))
            losses.append(float(metrics["loss"]))
    return start, states, losses


def momentum_contrast(start):
    """MoCo between two modalities as a plain loop in float64 -> (parameters, average, banks, loss) after every step."""
    tensor = lambda x: torch.tensor(np.asarray(x, np.float64))  # noqa: E731
    weights = {side: tensor(start["student"][side]).requires_grad_() for side in SIDES}
    log_scale = tensor(start["terms"]["t"]["logit_scale"]).requires_grad_()
    average, queue = None, []  # of ({side: key}, id), oldest first
    for batch in batches():
        with torch.no_grad():
            now = {side: w.clone() for side, w in weights.items()}
            average = now if average is None else {s: DECAY * average[s] + (1 - DECAY) * now[s] for s in SIDES}
            keys = {s: torch.nn.functional.normalize(tensor(batch[s]) @ average[s], dim=1) for s in SIDES}
        losses, ids = [], batch["id"]
        for side, other in (SIDES, SIDES[::-1]):
            queries = torch.nn.functional.normalize(tensor(batch[side]) @ weights[side], dim=1)
            for i in range(BATCH):
                negatives = [keys[other][j] for j in range(BATCH) if j != i]
                negatives += [key[other] for key, image in queue if image != ids[i]]
                logits = log_scale[0].exp() * torch.stack([keys[other][i], *negatives]) @ queries[i]
                losses.append(-torch.log_softmax(logits, 0)[0])
        loss = torch.stack(losses).mean()
        parameters = [*weights.values(), log_scale]
        with torch.no_grad():
            for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p -= RATE * gradient
        queue = (queue + [({s: keys[s][i] for s in SIDES}, ids[i]) for i in range(BATCH)])[-BANK:]
        yield {s: w.detach().clone() for s, w in weights.items()}, average, list(queue), loss.item()


def test_it_is_momentum_contrast():
    """Five steps: the average is that of the parameters *before* each step, and its features are the keys."""
    start, states, losses = trained(1)
    for (params, ema, slots), loss, expected in zip(states, losses, momentum_contrast(start), strict=True):
        weights, average, queue, expected_loss = expected
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
        banks = slots["t"]
        for side in SIDES:
            np.testing.assert_allclose(params["student"][side], weights[side], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(ema["momentum"][side], average[side], rtol=1e-4, atol=1e-5)
            bank = banks[side]["out"]
            order = (int(bank.head) - len(queue) + np.arange(len(queue))) % BANK
            np.testing.assert_array_equal(bank.ids[order], [image for _, image in queue])
            features = torch.stack([key[side] for key, _ in queue])
            np.testing.assert_allclose(bank.features[order], features, atol=1e-5)
    assert np.any(states[-1][0]["student"]["image"] != states[-1][1]["momentum"]["image"])


def test_the_same_on_8_devices():
    _, states, losses = trained(1)
    _, others, other_losses = trained(8)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-5), states[-1], others[-1])


def momentum_config(c):
    c.passes = ("momentum", "teacher", "student")
    c.terms = {"regress": {}, "bank_itc": {"keys": "momentum/", "bank_size": 24}}
    return c


def test_the_first_average_is_of_what_was_loaded():
    """Towers are put into the state after it was made: the average must start from them, not from what was random."""
    mesh, _, state, frozen, step = build(momentum_config(config()), 1)
    loaded = jax.tree.map(lambda x: x + 1, state.params)
    before = jax.device_get(loaded["student"])
    state, _ = step(state.replace(params=loaded), frozen, put_batch(next(real_batches()), mesh))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.ema["momentum"]), before)


def test_the_average_lies_where_the_parameters_do(monkeypatch):
    monkeypatch.setattr(rules, "FSDP_FROM", 100)
    c, mesh = momentum_config(config(sharding="fsdp")), make_mesh(4, fsdp_size=0)
    recipe, batch = build_recipe(c, vocab_size=VOCAB), next(real_batches())
    tx, _ = build_optimizer(c.optimizer, batch_size=len(batch["id"]), total_steps=10)
    abstract = abstract_state(recipe, tx, mesh, batch, sharding="fsdp")
    state = init_state(recipe, tx, mesh, batch, seed=0, sharding="fsdp")
    place = lambda x: x.sharding  # noqa: E731
    expected = jax.tree.map(place, state.params["student"])
    assert jax.tree.map(place, state.ema["momentum"]) == expected == jax.tree.map(place, abstract.ema["momentum"])
    assert not state.ema["momentum"]["head"]["kernel"].sharding.is_fully_replicated


@pytest.mark.slow
def test_it_needs_no_room_beside_the_student():
    """What the thesis reordered its step for: the average's activations are gone when the student's are kept."""
    without = config()
    without.terms = {"regress": {}, "bank_itc": {"bank_size": 24}}
    memory = lambda c: build(c, 1)[-1].memory_analysis().temp_size_in_bytes  # noqa: E731
    assert memory(momentum_config(config())) < 1.05 * memory(without)


def test_a_follower_without_its_leader_is_refused():
    c = momentum_config(config())
    c.passes = ("momentum", "views")
    with pytest.raises(UserError, match="the pass 'momentum' follows 'student', which is not among config.passes"):
        build_recipe(c, vocab_size=VOCAB)
