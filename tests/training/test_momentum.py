"""A moving average in whole train steps: against a run written out in PyTorch, and where the average lies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from two_matrices import two_matrices_config

from smke_jax.errors import UserError
from smke_jax.networks.base import Average, Network
from smke_jax.objectives.bank_itc import bank_itc
from smke_jax.objectives.base import Term, no_state
from smke_jax.parallel import rules
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.parts import part
from smke_jax.passes.averaged import averaged
from smke_jax.passes.base import Pass
from smke_jax.training.build import build_experiment, resolve
from smke_jax.training.recipe import make_recipe
from smke_jax.training.step import abstract_state, init_state, make_train_step

BATCH, INPUT, WIDTH, BANK, STEPS, DECAY, RATE = 8, 5, 4, 21, 5, 0.8, 0.3
SIDES = ("image", "text")


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        x = {side: rng.normal(size=(BATCH, INPUT)).astype(np.float32) for side in SIDES}
        yield x | {"id": rng.integers(0, 12, BATCH).astype(np.int32)}


def contrast(decay=DECAY):
    """A matrix per modality, and their averages as the keys."""

    def init(key, specs):
        keys = jax.random.split(key)
        return {side: jax.random.normal(k, (INPUT, WIDTH)) for side, k in zip(SIDES, keys, strict=True)}

    def run(params, arrays, key, train):
        return {f"{side}/out": arrays[side] @ params["net"][side] for side in SIDES}

    encode = Pass("encode", ("net",), SIDES, ("image/out", "text/out"), run)
    follower = Network(None, None, trained=False, average=Average("net", decay))
    return make_recipe(
        {"net": Network(init, None), "momentum": follower}, (encode, averaged(encode, "net", "momentum")),
        {"t": bank_itc(("out",), "momentum/", BANK)}, {"t": lambda progress: 1.0}, batch=(*SIDES, "id"),
    )  # fmt: skip


@functools.cache
def trained(devices):
    """(parameters at the start, the state after every step, the losses)."""
    recipe, tx, mesh = contrast(), optax.sgd(RATE), make_mesh(devices)
    state = init_state(recipe, tx, mesh, next(batches()), seed=0)
    start, states, losses = jax.device_get(state.params), [], []
    step = make_train_step(recipe, tx, mesh, total_steps=STEPS)
    with jax.default_matmul_precision("highest"):
        for batch in batches():
            state, metrics = step(state, {}, put_batch(batch, mesh))
            states.append(jax.device_get((state.params, state.averages, state.slots)))
            losses.append(float(metrics["loss"]))
    return start, states, losses


def momentum_contrast(start):
    """MoCo between two modalities as a plain loop in float64 -> (parameters, average, banks, loss) after every step."""
    tensor = lambda x: torch.tensor(np.asarray(x, np.float64))  # noqa: E731
    weights = {side: tensor(start["net"][side]).requires_grad_() for side in SIDES}
    log_scale = tensor(start["terms"]["t"]["logit_scale"]["out"]).requires_grad_()
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
                logits = log_scale.exp() * torch.stack([keys[other][i], *negatives]) @ queries[i]
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
    for (params, averages, slots), loss, expected in zip(states, losses, momentum_contrast(start), strict=True):
        weights, average, queue, expected_loss = expected
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
        banks = slots["t"]
        for side in SIDES:
            np.testing.assert_allclose(params["net"][side], weights[side], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(averages["momentum"][side], average[side], rtol=1e-4, atol=1e-5)
            bank = banks[side]["out"]
            order = (int(bank.head) - len(queue) + np.arange(len(queue))) % BANK
            np.testing.assert_array_equal(bank.ids[order], [image for _, image in queue])
            features = torch.stack([key[side] for key, _ in queue])
            np.testing.assert_allclose(bank.features[order], features, atol=1e-5)
    assert np.any(states[-1][0]["net"]["image"] != states[-1][1]["momentum"]["image"])


def test_the_same_on_8_devices():
    _, states, losses = trained(1)
    _, others, other_losses = trained(8)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-5), states[-1], others[-1])


def test_the_first_average_is_of_what_was_loaded():
    """Files are read into the state after it was made: the average must start from them, not from what was random."""
    recipe, tx, mesh = contrast(), optax.sgd(RATE), make_mesh(1)
    state = init_state(recipe, tx, mesh, next(batches()), seed=0)
    loaded = jax.tree.map(lambda x: x + 1, state.params)
    before = jax.device_get(loaded["net"])
    step = make_train_step(recipe, tx, mesh, total_steps=STEPS)
    state, _ = step(state.replace(params=loaded), {}, put_batch(next(batches()), mesh))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.averages["momentum"]), before)


def test_the_average_lies_where_the_parameters_do(monkeypatch):
    monkeypatch.setattr(rules, "FSDP_FROM", 10)
    recipe, tx, mesh = contrast(), optax.adam(RATE), make_mesh(4, fsdp_size=0)
    abstract = abstract_state(recipe, tx, mesh, next(batches()), sharding="fsdp")
    state = init_state(recipe, tx, mesh, next(batches()), seed=0, sharding="fsdp")
    place = lambda x: x.sharding  # noqa: E731
    expected = jax.tree.map(place, state.params["net"])
    assert jax.tree.map(place, state.averages["momentum"]) == expected
    assert jax.tree.map(place, abstract.averages["momentum"]) == expected
    assert not state.averages["momentum"]["image"].sharding.is_fully_replicated


def test_its_activations_need_no_room_beside_those_of_the_step():
    """What the thesis reordered its step for: the average's activations are gone when the others are kept."""
    shapes = {"x": jax.ShapeDtypeStruct((4096, 32), jnp.float32), "id": jax.ShapeDtypeStruct((4096,), jnp.int32)}

    def init(key, specs):
        return {str(i): jax.random.normal(key, (32, 32)) for i in range(6)}

    def run(params, arrays, key, train):
        x = arrays["x"]
        for kernel in params["net"].values():
            x = jax.nn.gelu(x @ kernel)
        return {"z": x}

    deep = Pass("deep", ("net",), ("x",), ("z",), run)

    def memory(follow):
        networks = {"net": Network(init, None), "slow": Network(None, None, trained=False, average=Average("net", 0.9))}
        other = "slow/z" if follow else "x"
        term = Term(("z", other), no_state, lambda p, s, reps, scope: (jnp.mean((reps["z"] - reps[other]) ** 2), {}))
        recipe = make_recipe(networks, (deep, averaged(deep, "net", "slow")), {"t": term}, {"t": lambda p: 1.0},
                             batch=("x", "id"))  # fmt: skip
        mesh, tx = make_mesh(1), optax.sgd(0.1)
        step = make_train_step(recipe, tx, mesh, total_steps=10)
        compiled = step.lower(abstract_state(recipe, tx, mesh, shapes), {}, shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    layer = 4096 * 32 * 4
    without = memory(False)
    assert without > 6 * layer, "the activations of every layer are kept"
    assert memory(True) < without + 2 * layer


def test_a_follower_without_its_leader_is_refused():
    c = two_matrices_config("alike")
    c.networks.momentum = part("average", of="student")
    with pytest.raises(UserError, match="config.networks.momentum follows 'student', which is no network: add it"):
        build_experiment(resolve(c), None)


def test_a_part_of_a_network_is_averaged_where_a_part_is_trained():
    c = two_matrices_config()
    c.networks.net.trained = ("text",)
    c.networks.momentum = part("average", of="net")
    c.terms.bank_itc = part("bank_itc", keys="momentum/", bank_size=16)
    experiment = build_experiment(resolve(c), None)
    state = abstract_state(experiment.recipe, optax.sgd(0.1), experiment.mesh, experiment.batch)
    assert set(state.averages["momentum"]) == set(state.params["net"]) == {"text"}
