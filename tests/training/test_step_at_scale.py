"""Micro-batches, fsdp, bfloat16 and the ring in the train step: the same numbers, less memory, no stray transfers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import collectives
from two_matrices import two_matrices_config

from smke_jax.errors import UserError
from smke_jax.networks.base import Network
from smke_jax.objectives.base import Term, no_state
from smke_jax.parallel import rules
from smke_jax.parallel.mesh import check_batch_size, make_mesh, put_batch
from smke_jax.parts import part
from smke_jax.passes.base import Pass
from smke_jax.tasks.base import BatchPlan
from smke_jax.training.build import build_experiment, build_step, resolve
from smke_jax.training.frozen import frozen_shapes, load_frozen, networks_of
from smke_jax.training.recipe import make_recipe
from smke_jax.training.step import abstract_state, init_state, make_train_step

BATCH, BANK, STEPS = 16, 24, 3


@pytest.fixture(autouse=True)
def small_arrays_are_split(monkeypatch):
    monkeypatch.setattr(rules, "FSDP_FROM", 30)


def config(**changes):
    """Two matrices of 8 columns, a bank and a contrast over the batch."""
    c = two_matrices_config()
    c.networks.net.width = c.networks.target.width = 8
    c.terms.itc = part("itc", levels=("out",), same_image="masked")
    c.terms.target_itc.bank_size = BANK
    c.update(batch_size=BATCH, total_steps=10)
    c.update_from_flattened_dict(changes)
    return resolve(c)


class Run:
    """A config on some devices, compiled."""

    def __init__(self, c, devices):
        c.num_devices = devices
        self.experiment = build_experiment(c, None)
        self.mesh, self.recipe, self.sharding = self.experiment.mesh, self.experiment.recipe, c.sharding
        self.tx, _, self.abstract, self.step = build_step(c, self.experiment)

    def compiled(self):
        shapes = self.abstract, frozen_shapes(self.recipe, self.experiment.shapes), self.experiment.batch
        return self.step.lower(*shapes).compile()

    def start(self):
        state = init_state(self.recipe, self.tx, self.mesh, self.experiment.batch, seed=0, sharding=self.sharding)
        names = networks_of(self.recipe, self.recipe.forward)
        return state, load_frozen(self.recipe, self.experiment.shapes, {}, self.mesh, seed=0, names=sorted(names))

    def train(self, batches):
        (state, frozen), history = self.start(), []
        for batch in batches:
            state, metrics = self.step(state, frozen, put_batch(batch, self.mesh))
            history.append(jax.device_get(metrics))
        return jax.device_get((state.params, state.slots)), history


def vectors():
    experiment = build_experiment(config(), None)
    batches = experiment.task.batches(BatchPlan(BATCH, 0, arrays=frozenset(experiment.batch)))
    return [next(batches) for _ in range(STEPS)]


@functools.cache
def plain(optimizer):
    return Run(config(**{"optimizer.name": optimizer}), 1).train(vectors())


def assert_the_same(one, other, tolerance):
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))


WAYS = {
    "micro-batches": (1, {"micro_batch": 4}),
    "ring on 4": (4, {"loss_impl": "ring"}),
    "fsdp in pairs on 8": (8, {"sharding": "fsdp", "fsdp_size": 2}),
    "muon, fsdp on 4": (4, {"sharding": "fsdp", "optimizer.name": "muon"}),
    "everything on 4": (4, {"sharding": "fsdp", "fsdp_size": 2, "micro_batch": 2, "loss_impl": "ring"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_three_steps_give_the_same_numbers(way):
    """Against one device, whole batch, gather: metrics, gradients' norm, parameters and bank after three steps."""
    devices, changes = WAYS[way]
    state, history = Run(config(**changes), devices).train(vectors())
    expected_state, expected_history = plain(changes.get("optimizer.name", "adamw"))
    assert_the_same(expected_history, history, 1e-4)
    assert_the_same(expected_history[0], history[0], 1e-5)
    assert_the_same(expected_state, state, 3e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_embeddings_that_travel_in_bfloat16_move_the_loss_by_their_rounding(devices):
    """A cosine of a rounded row is off by at most 2^-8, a logit and a loss by that times the scale.

    So is the share of a softmax, relative to itself, of which gradients are made.
    """
    _, (first, *_) = Run(config(exchange_dtype="bfloat16"), devices).train(vectors()[:1])
    expected = plain("adamw")[1][0]
    share = 2.0**-8 * max(expected["itc/logit_scale_out"], expected["target_itc/logit_scale"])
    for term in ("itc", "target_itc"):
        assert 0 < abs(first[f"{term}/loss"] - expected[f"{term}/loss"]) < share, term
    np.testing.assert_allclose(first["grad_norm"], expected["grad_norm"], rtol=share)


def test_a_step_in_bfloat16_keeps_the_loss_and_the_gradients():
    """Plain gradient descent, by which parameters move by their gradients; parameters and losses stay fp32."""
    found, tx = {}, optax.sgd(1.0)
    for dtype in ("float32", "bfloat16"):
        run = Run(config(**{"networks.net.dtype": dtype}), 1)
        step = make_train_step(run.recipe, tx, run.mesh, total_steps=10)
        state = init_state(run.recipe, tx, run.mesh, run.experiment.batch, seed=0)
        before = jax.device_get(state.params)
        state, metrics = step(state, run.start()[1], put_batch(vectors()[0], run.mesh))
        assert {x.dtype for x in jax.tree.leaves((before, state.params, metrics))} == {np.dtype("float32")}
        found[dtype] = jax.tree.map(lambda a, b: np.ravel(a - np.asarray(b)), before, state.params), metrics
    (exact, exact_metrics), (rough, rough_metrics) = found.values()
    np.testing.assert_allclose(rough_metrics["loss"], exact_metrics["loss"], rtol=0.01)
    np.testing.assert_allclose(rough_metrics["grad_norm"], exact_metrics["grad_norm"], rtol=0.02)
    for side in ("image", "text"):
        one, other = (tree["net"][side]["kernel"] for tree in (exact, rough))
        assert one @ other > 0.999 * np.linalg.norm(one) * np.linalg.norm(other), side
        assert np.any(one != other), "nothing was rounded"


def test_fsdp_splits_what_is_large_and_makes_it_where_it_lies():
    run = Run(config(sharding="fsdp"), 4)
    state, _ = run.start()
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.sharding, b.sharding), run.abstract, state)
    kernel = state.params["net"]["image"]["kernel"]
    assert kernel.shape == (6, 8) and kernel.addressable_shards[0].data.shape == (6, 2)
    assert state.params["terms"]["itc"]["logit_scale"]["out"].sharding.is_fully_replicated
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim == 2]
    assert len(moments) == 4 and not any(x.sharding.is_fully_replicated for x in moments)
    bank = state.slots["target_itc"]
    assert bank.features.addressable_shards[0].data.shape == (BANK // 4, 8)
    assert bank.ids.addressable_shards[0].data.shape == (BANK // 4,) and bank.head.sharding.is_fully_replicated
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b),
        jax.device_get(state.params), jax.device_get(Run(config(), 1).start()[0].params),
    )  # fmt: skip


def test_rules_by_path_and_shape():
    mesh = make_mesh(8, fsdp_size=4)  # two groups of four
    shape = lambda *s: jax.ShapeDtypeStruct(s, np.float32)  # noqa: E731
    tree = {
        "params": {"kernel": shape(12, 40), "tall": shape(40, 13), "odd": shape(33, 35), "bias": shape(20)},
        "slots": {"t": {"features": shape(16, 3), "ids": shape(16), "head": shape()}, "u": {"features": shape(20, 3)}},
    }
    found = rules.specs(tree, mesh, "fsdp", {"t": ("features", "ids"), "u": ("features",)})
    assert found["params"]["kernel"] == jax.P(None, "fsdp") and found["params"]["tall"] == jax.P("fsdp", None)
    assert found["params"]["odd"] == found["params"]["bias"] == found["slots"]["t"]["head"] == jax.P()
    assert found["slots"]["t"]["features"] == found["slots"]["t"]["ids"] == jax.P(("data", "fsdp"))
    assert found["slots"]["u"]["features"] == jax.P(), "20 rows do not divide by 8"
    replicated_params = rules.specs(tree, mesh)["params"]
    assert all(spec == jax.P() for spec in replicated_params.values())


def test_slots_are_spread_where_their_term_says_so_and_not_by_their_names():
    """A slot called 'features' of a term that does not spread it is whole on every device, and the other way round."""
    c = config()

    def keeping(spread):
        def init(key, shapes):
            return {}, {"features": jnp.zeros((8, 3)), "rows": jnp.zeros((8, 3))}

        def value(params, slots, reps, scope):
            here = {f"{name}_here": jnp.float32(len(x)) for name, x in slots.items()}
            return jnp.mean(reps["image/out"]), here

        return Term(("image/out",), init, value, spread=spread)

    recipe = build_experiment(c, None).recipe
    for spread in ((), ("features",), ("rows",)):
        own = recipe._replace(terms={"t": keeping(spread)}, weights={"t": lambda p: 1.0})
        mesh, tx = make_mesh(4), optax.sgd(0.1)
        batch = {"image": np.ones((8, 6), np.float32), "text": np.ones((8, 5), np.float32), "id": np.arange(8)}
        state = init_state(own, tx, mesh, batch, seed=0)
        whole = {name: x.sharding.is_fully_replicated for name, x in state.slots["t"].items()}
        assert whole == {name: name not in spread for name in ("features", "rows")}
    step = make_train_step(own, tx, mesh, total_steps=1, layout=state)
    frozen = {"target": {"kernel": np.ones((6, 8), np.float32)}}
    _, metrics = step(state, frozen, put_batch(batch, mesh))
    assert (metrics["t/features_here"], metrics["t/rows_here"]) == (8, 2)


def test_a_bank_that_does_not_divide_is_named():
    mesh = make_mesh(8)
    features = lambda rows: {"slots": {"t": {"features": jax.ShapeDtypeStruct((rows, 2**17), np.float32)}}}  # noqa: E731
    (line,) = rules.undivided(features(20), mesh, {"t": ("features",)})
    assert (
        line == "slots/t/features: 20 rows do not divide over 8 devices, so each holds all of them (10 MiB); 24 would"
    )
    assert rules.undivided(features(24), mesh, {"t": ("features",)}) == []
    assert rules.undivided(features(20), mesh, {}) == []


@pytest.mark.parametrize("impl", ["gather", "ring"])
def test_the_bank_stays_where_it_is(impl):
    """No collective of a step on 8 devices carries the bank's features, in the loss or in the update."""
    bank = 8 * 160
    found = collectives(Run(config(**{"loss_impl": impl, "terms.target_itc.bank_size": bank}), 8).compiled())
    assert found, "nothing is exchanged at all?"
    assert not [(kind, n) for kind, n in found if n >= bank * 8 // 8]
    assert ("collective-permute" in {kind for kind, _ in found}) == (impl == "ring")


def test_micro_batches_move_nothing_and_take_less_memory():
    """Per device: no all-to-all for cutting the batch, and temporary memory that shrinks with the micro-batch."""
    rows = 1024
    shapes = {"x": jax.ShapeDtypeStruct((rows, 32), jnp.float32), "id": jax.ShapeDtypeStruct((rows,), jnp.int32)}

    def init(key, specs):
        return {str(i): jax.random.normal(key, (32, 32)) for i in range(6)}

    def run(params, arrays, key, train):
        x = arrays["x"]
        for kernel in params["net"].values():
            x = jax.nn.gelu(x @ kernel)
        return {"z": x[:, :1]}

    deep = Pass("deep", ("net",), ("x",), ("z",), run)
    term = Term(("z",), no_state, lambda p, s, reps, scope: (jnp.mean(reps["z"] ** 2), {}))
    recipe = make_recipe({"net": Network(init, None)}, (deep,), {"t": term}, {"t": lambda p: 1.0}, batch=("x", "id"))
    mesh, tx = make_mesh(2), optax.sgd(0.1)

    def compiled(micro_batch):
        step = make_train_step(recipe, tx, mesh, total_steps=10, micro_batch=micro_batch)
        return step.lower(abstract_state(recipe, tx, mesh, shapes), {}, shapes).compile()

    whole, cut = compiled(0), compiled(64)
    assert not {kind for kind, _ in collectives(cut)} & {"all-to-all", "collective-permute"}
    memory = lambda step: step.memory_analysis().temp_size_in_bytes  # noqa: E731
    assert memory(cut) < 0.5 * memory(whole)


def test_what_does_not_divide_is_refused():
    mesh = make_mesh(4)
    check_batch_size(32, mesh, micro_batch=4)
    check_batch_size(32, mesh, micro_batch=64)  # more than a device has: no micro-batches
    with pytest.raises(UserError, match="config.micro_batch 6 does not divide the 16 examples of each device.*to 4"):
        check_batch_size(64, mesh, micro_batch=6)
    with pytest.raises(UserError, match="batch_size 30 does not divide over 4 devices: set it to 32"):
        check_batch_size(30, mesh)
    with pytest.raises(UserError, match="fsdp_size 3 does not divide 4 devices"):
        make_mesh(4, fsdp_size=3)
    with pytest.raises(UserError, match="9 devices were asked for, this machine shows 8"):
        make_mesh(9)
