"""The whole train step on two matrices: devices, donation, what is frozen, weights, order, and what went bad."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from two_matrices import two_matrices_config

from smke_jax.errors import UserError
from smke_jax.losses.collective import own_rows
from smke_jax.networks.base import Network
from smke_jax.objectives.base import Term, no_state
from smke_jax.parallel.mesh import make_mesh, put_batch, replicated
from smke_jax.parts import part
from smke_jax.passes.base import Pass
from smke_jax.selections.base import Selection
from smke_jax.tasks.base import BatchPlan
from smke_jax.training.build import build_experiment, build_step, resolve
from smke_jax.training.frozen import load_frozen
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.recipe import make_recipe
from smke_jax.training.step import abstract_state, init_state, make_diagnosis, make_train_step

BATCH, BANK, STEPS = 8, 11, 3


def config(optimizer="adamw", devices=2):
    c = two_matrices_config()
    c.terms.itc = part("itc", levels=("out",), same_image="masked")
    c.terms.target_itc.bank_size = BANK
    c.update(total_steps=10, num_devices=devices)
    c.optimizer.update(name=optimizer)
    return resolve(c)


class Run:
    """The recipe on some devices."""

    def __init__(self, c):
        self.experiment = build_experiment(c, None)
        self.mesh, self.recipe = self.experiment.mesh, self.experiment.recipe
        self.tx, _, self.abstract, self.jitted = build_step(c, self.experiment)
        self.frozen = load_frozen(self.recipe, self.experiment.shapes, {}, self.mesh, seed=0, names=("target",))
        self.batch = next(self.batches())
        self.lowered = self.jitted.lower(self.start(), self.frozen, put_batch(self.batch, self.mesh))
        self.step = self.lowered.compile()

    def batches(self):
        arrays = frozenset(self.experiment.batch)
        iterator = self.experiment.task.batches(BatchPlan(BATCH, 0, arrays=arrays))
        for _ in range(STEPS):
            yield next(iterator)

    def start(self):
        return init_state(self.recipe, self.tx, self.mesh, self.experiment.batch, seed=0)

    def train(self):
        state, history = self.start(), []
        for batch in self.batches():
            state, metrics = self.step(state, self.frozen, put_batch(batch, self.mesh))
            history.append(jax.device_get(metrics))
        return state, history


@functools.cache
def run_of(optimizer, devices):
    return Run(config(optimizer, devices))


@pytest.fixture(scope="module")
def run():
    """AdamW on two devices: what all tests but the comparison of devices use."""
    return run_of("adamw", 2)


@pytest.fixture(scope="module")
def trained(run):
    state, history = run.train()
    return jax.device_get(state), history


def paths(tree):
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]


def assert_agree(one, other, tolerance):
    for path, a, b in zip(paths(one), jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        # Of two candidates that are almost as near, rounding decides: it may change the accuracy by one row.
        least = 1.01 / BATCH if "accuracy" in path else tolerance
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=tolerance, atol=least, err_msg=path)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_three_steps_agree_on_1_2_and_8_devices(optimizer):
    results = {devices: run_of(optimizer, devices).train() for devices in (1, 2, 8)}
    state, history = jax.device_get(results.pop(1))
    assert state.step == STEPS
    for other_state, other_history in map(jax.device_get, results.values()):
        assert_agree(state.params, other_state.params, 2e-5)
        assert_agree(state.slots, other_state.slots, 1e-5)
        assert_agree(history, other_history, 1e-4)


def test_everything_trained_moves_and_the_bank_fills(run, trained):
    state, history = trained
    start = jax.device_get(run.start())
    assert set(start.params) == {"net", "terms"}
    for path, a, b in zip(
        paths(start.params), jax.tree.leaves(start.params), jax.tree.leaves(state.params), strict=True
    ):
        assert np.any(a != b), path
    np.testing.assert_array_equal(jax.random.key_data(start.rng), jax.random.key_data(state.rng))
    assert state.slots["target_itc"].head == STEPS * BATCH % BANK
    np.testing.assert_allclose([h["target_itc/bank_filled"] for h in history], [0, 8 / 11, 1], rtol=1e-6)


def test_the_same_start_gives_the_same_end(run, trained):
    again, history = run.train()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again).params, trained[0].params)
    jax.tree.map(np.testing.assert_array_equal, history, trained[1])


def test_the_loss_falls_on_one_batch(run):
    state, batch = run.start(), put_batch(run.batch, run.mesh)
    losses = []
    for _ in range(10):
        state, metrics = run.step(state, run.frozen, batch)
        losses.append(float(metrics["itc/loss"]))
    assert losses[-1] < 0.85 * losses[0]


def test_metrics(run, trained):
    itc = ["loss_out", "accuracy_out", "logit_scale_out", "loss"]
    target = ["loss_image", "loss_text", "accuracy_image", "accuracy_text", "logit_scale", "bank_filled", "loss"]
    expected = {"loss", "grad_norm", "update_norm", "collisions", "embedding_std/image/out", "embedding_std/text/out"}
    expected |= {f"itc/{k}" for k in itc} | {f"target_itc/{k}" for k in target}
    for metrics in trained[1]:
        assert set(metrics) == expected
        assert all(np.shape(v) == () and np.isfinite(v) for v in metrics.values())
        np.testing.assert_allclose(metrics["loss"], metrics["itc/loss"] + metrics["target_itc/loss"], rtol=1e-6)
        assert metrics["grad_norm"] > 0
    for metrics, batch in zip(trained[1], run.batches(), strict=True):
        ids = batch["id"]
        collisions = np.mean([(ids == i).sum() > 1 for i in ids])
        np.testing.assert_allclose(metrics["collisions"], collisions)


def test_the_state_is_donated_and_frozen_parameters_are_not(run):
    state, batch = run.start(), put_batch(run.batch, run.mesh)
    frozen = jax.device_get(run.frozen)
    new, _ = run.step(state, run.frozen, batch)
    assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.opt_state, state.slots)))
    assert not any(x.is_deleted() for x in jax.tree.leaves((run.frozen, batch)))
    # On a CPU a buffer that no output fits survives its donation, so ask what was compiled too.
    (of_state, of_frozen, of_batch), _ = run.lowered.args_info
    assert all(x.donated for x in jax.tree.leaves(of_state))
    assert not any(x.donated for x in jax.tree.leaves((of_frozen, of_batch)))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.frozen), frozen)
    assert all(x.sharding == replicated(run.mesh) for x in jax.tree.leaves(new.params))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.sharding, b.sharding), run.abstract, new)


def test_the_step_compiles_once(run):
    """The state comes out with the types it went in with, weak ones included; otherwise the second step compiles."""
    kind = lambda x: (x.shape, x.dtype, x.weak_type)  # noqa: E731
    state = run.abstract
    new, _ = jax.eval_shape(run.jitted, state, run.frozen, run.batch)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for path, a, b in zip(paths(state), jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert kind(a) == kind(b), path


# ---- what went bad


@pytest.fixture(scope="module")
def diagnose(run):
    look = make_diagnosis(run.recipe, run.mesh)
    return lambda state, frozen=run.frozen, batch=run.batch: look(state, frozen, put_batch(batch, run.mesh), 0)


def with_value(tree, value, *keys):
    """`tree` with one such number in the leaf at `keys`."""
    if not keys:
        return tree.at[(0,) * tree.ndim].set(value)
    return {**tree, keys[0]: with_value(tree[keys[0]], value, *keys[1:])}


@pytest.mark.parametrize("keys", [("net", "text", "kernel"), ("terms", "itc", "logit_scale", "out")], ids="/".join)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_parameter_is_named(run, diagnose, keys, value):
    state = run.start()
    params = jax.device_put(with_value(state.params, value, *keys), replicated(run.mesh))
    assert diagnose(state.replace(params=params)) == "/".join(("params", *keys))


def test_nothing_bad_is_nobody(run, diagnose):
    assert diagnose(run.start()) == ""


def test_bad_frozen_weights_and_bad_data_show_in_what_is_made_of_them(run, diagnose):
    frozen = jax.device_put(with_value(run.frozen, np.nan, "target", "kernel"), replicated(run.mesh))
    assert diagnose(run.start(), frozen=frozen) == "representation/target/cls"
    image = run.batch["image"].copy()
    image[3, 1] = np.inf
    assert diagnose(run.start(), batch={**run.batch, "image": image}) == "representation/image"


def test_a_step_that_is_not_finite_leaves_a_finite_state(run):
    """Without the gradient: parameters move by no more than their decay, and the bank keeps what it holds."""
    state = run.start()
    before = jax.device_get(state.replace(rng=None))
    image = np.full_like(run.batch["image"], np.nan)
    state, metrics = run.step(state, run.frozen, put_batch({**run.batch, "image": image}, run.mesh))
    assert np.isnan(metrics["loss"])
    after = jax.device_get(state.replace(rng=None))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after))
    assert_agree(before.params, after.params, 1e-3)
    jax.tree.map(np.testing.assert_array_equal, after.slots, before.slots)
    assert after.step == 1


def test_a_run_stops_there_and_says_which_rows_and_what(tmp_path):
    """The step itself does not look for the tensor: that is a second program, which no other run compiles."""
    bad = two_matrices_config("alike")
    bad.task.infinite_at, bad.checkpoint.every, bad.evaluators.retrieval.every = 2, 1, 0
    with pytest.raises(UserError) as error:
        train_and_evaluate(bad, tmp_path)
    batches = build_experiment(resolve(bad), None).task.batches(BatchPlan(BATCH, bad.seed))
    ids = [next(batches)["id"].tolist() for _ in range(2)][-1]
    path = tmp_path / "non-finite-step-2.json"
    assert json.loads(path.read_text()) == {"step": 2, "tensor": "representation/text", "ids": ids}
    message = str(error.value)
    assert message.startswith("step 2: representation/text is not finite (loss ") and str(path) in message
    assert "\n" not in message
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"], "what is not finite is not saved"


# ---- made-up recipes, small enough to say what has to come out


def scalar_recipe(functions, weights):
    """Parameter w; one representation y = w · x; terms whose loss is functions[name](y)."""
    run = lambda params, arrays, key, train: {"y": params["model"]["w"] * arrays["x"]}  # noqa: E731
    model = Pass("model", ("model",), ("x",), ("y",), run)

    def term(function):
        return Term(("y",), no_state, lambda p, s, reps, scope: (function(reps["y"]), {}))

    network = Network(lambda key, specs: {"w": jnp.ones(())}, None)
    terms = {name: term(f) for name, f in functions.items()}
    return make_recipe({"model": network}, (model,), terms, weights, batch=("x", "id"))


FOUR = {"x": np.arange(1.0, 5.0, dtype=np.float32), "id": np.arange(4, dtype=np.int32)}


def one_step(recipe, step=0, total_steps=10, devices=2):
    mesh, tx = make_mesh(devices), optax.sgd(0.5)
    state = init_state(recipe, tx, mesh, FOUR, seed=0).replace(step=jax.device_put(jnp.int32(step), replicated(mesh)))
    train_step = make_train_step(recipe, tx, mesh, total_steps=total_steps)
    return jax.device_get(train_step(state, {}, put_batch(FOUR, mesh)))


def weights_of(**terms):
    c = two_matrices_config()
    del c.terms.target_itc, c.networks.target
    for name, fields in terms.items():
        c.terms[name] = part("itc", levels=("out",), **fields)
    return build_experiment(resolve(c), None).recipe.weights


def test_final_weight_is_a_ramp():
    """Weights as a config gives them: 1 at the start to `final_weight` at the end of training."""
    weights = weights_of(one={"weight": 2.0}, other={"weight": 1.0, "final_weight": 3.0})
    recipe = scalar_recipe({"one": jnp.mean, "other": lambda y: 10 * jnp.mean(y)}, weights)
    for step, weight in ((0, 1.0), (5, 2.0), (10, 3.0)):
        state, metrics = one_step(recipe, step=step)
        np.testing.assert_allclose(metrics["one/loss"], 2.5)
        np.testing.assert_allclose(metrics["other/loss"], 25.0)
        np.testing.assert_allclose(metrics["loss"], 2 * 2.5 + weight * 25.0, rtol=1e-6)
        np.testing.assert_allclose(state.params["model"]["w"], 1 - 0.5 * (2 * 2.5 + weight * 25.0), rtol=1e-6)
        np.testing.assert_allclose(metrics["grad_norm"], 2 * 2.5 + weight * 25.0, rtol=1e-6)
        np.testing.assert_allclose(metrics["update_norm"], 0.5 * (2 * 2.5 + weight * 25.0), rtol=1e-6)
        assert state.step == step + 1


def test_terms_without_weight_are_left_out_and_ramps_from_0_are_not():
    weights = weights_of(gone={"weight": 0.0}, ramp={"weight": 0.0, "final_weight": 1.0})
    assert list(weights) == ["ramp"]
    assert [float(weights["ramp"](p)) for p in (0.0, 0.25, 1.0)] == [0.0, 0.25, 1.0]
    with pytest.raises(UserError, match="config.terms is empty or all its weights are 0"):
        weights_of(gone={"weight": 0.0})


def test_a_bad_loss_and_a_bad_gradient_are_named():
    # At 0 the logarithm is infinite; the root is not, but its gradient is.
    for function, name in ((jnp.log, "loss/t"), (jnp.sqrt, "gradient/model/w")):
        recipe = scalar_recipe({"t": lambda y, f=function: f(jnp.mean(y) - 2.5)}, {"t": lambda progress: 1.0})
        mesh = make_mesh(1)
        state = init_state(recipe, optax.sgd(0.1), mesh, FOUR, seed=0)
        assert make_diagnosis(recipe, mesh)(state, {}, put_batch(FOUR, mesh), 0) == name


def test_a_term_draws_the_same_on_any_devices_and_anew_in_every_step_and_term():
    def value(params, slots, reps, scope):
        drawn = own_rows(jax.random.uniform(scope.key, (4,)), scope)
        return jnp.mean(drawn * reps["y"]), {}

    model = scalar_recipe({"t": jnp.mean}, {"t": lambda progress: 1.0})
    term = Term(("y",), no_state, value)
    recipe = model._replace(terms={"one": term, "two": term}, weights=dict.fromkeys(("one", "two"), lambda p: 1.0))
    seen = {}
    for step in (0, 1):
        for devices in (1, 4):
            _, metrics = one_step(recipe, step=step, devices=devices)
            seen[step, devices] = metrics["one/loss"], metrics["two/loss"]
        np.testing.assert_allclose(seen[step, 4], seen[step, 1], rtol=1e-6)
    assert len({float(x) for step in (0, 1) for x in seen[step, 1]}) == 4


# ---- parts of a network that are not trained


def two_parts(trained):
    def init(key, specs):
        return {"kept": {"kernel": jnp.full((1, 2), 2.0)}, "moved": {"kernel": jnp.ones((1, 2))}}

    def run(params, arrays, key, train):
        kernels = params["model"]
        return {"y": arrays["x"][:, None] @ (kernels["kept"]["kernel"] * kernels["moved"]["kernel"])}

    model = Pass("model", ("model",), ("x",), ("y",), run)
    term = Term(("y",), no_state, lambda p, s, reps, scope: (jnp.mean(reps["y"]), {}))
    network = Network(init, None, trained=trained)
    return make_recipe({"model": network}, (model,), {"t": term}, {"t": lambda p: 1.0}, batch=("x", "id"))


def test_what_is_not_trained_has_no_gradient_no_moments_and_no_part_in_the_norm():
    recipe, mesh, tx = two_parts(("moved",)), make_mesh(2), optax.adam(0.1)
    state = init_state(recipe, tx, mesh, FOUR, seed=0)
    assert paths(state.params) == ["model/moved/kernel"]
    assert all("kept" not in path for path in paths(state.opt_state))
    frozen = jax.device_put({"model": {"kept": {"kernel": jnp.full((1, 2), 2.0)}}}, replicated(mesh))
    state, metrics = make_train_step(recipe, tx, mesh, total_steps=10)(state, frozen, put_batch(FOUR, mesh))
    # d mean(y) / d moved is mean(x) · kept / 2 = 2.5 for both columns.
    np.testing.assert_allclose(metrics["grad_norm"], 2.5 * np.sqrt(2), rtol=1e-5)
    moved = np.asarray(state.params["model"]["moved"]["kernel"])
    assert np.all(moved != 1)
    np.testing.assert_allclose(metrics["update_norm"], np.sqrt(np.sum((moved - 1) ** 2)), rtol=1e-5)
    np.testing.assert_array_equal(frozen["model"]["kept"]["kernel"], 2)


def test_a_regex_that_finds_nothing_is_refused_with_what_there_is():
    with pytest.raises(UserError, match=r"trained='mooved' finds none of .*: kept/kernel, moved/kernel"):
        init_state(two_parts(("mooved",)), optax.sgd(0.1), make_mesh(1), FOUR, seed=0)


def test_a_state_of_arrays_that_are_known_is_the_state_of_its_batch():
    experiment = build_experiment(config(), None)
    given = experiment.recipe, optax.adamw(0.1), experiment.mesh, experiment.batch
    traced = init_state(*given, seed=3)
    known = init_state(*given, seed=3, shapes=experiment.shapes)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(traced.params), jax.device_get(known.params))
    shape = lambda x: (x.shape, x.dtype, x.sharding)  # noqa: E731
    of_known = abstract_state(*given, shapes=experiment.shapes)
    assert jax.tree.map(shape, of_known) == jax.tree.map(shape, abstract_state(*given)) == jax.tree.map(shape, known)


# ---- order


def made_pass(name, needs, provides, network="net"):
    run = lambda params, arrays, key, train: {n: sum(arrays[x] for x in needs) for n in provides}  # noqa: E731
    return Pass(name, (network,), needs, provides, run)


def ordered(*passes, needs=("c",), selections=()):
    term = Term(needs, no_state, lambda p, s, reps, scope: (jnp.mean(reps[needs[0]]), {}))
    networks = {"net": Network(lambda key, specs: {}, None, trained=False)}
    recipe = make_recipe(networks, passes, {"t": term}, {"t": lambda p: 1.0}, batch=("x", "id"), selections=selections)
    return [item.name for item in recipe.forward]


def test_passes_run_in_the_order_of_their_needs_whatever_the_order_of_the_config():
    first, second, third = (
        made_pass("first", ("x",), ("a",)), made_pass("second", ("a",), ("b",)), made_pass("third", ("a", "b"), ("c",))
    )  # fmt: skip
    unread = made_pass("unread", ("c",), ("d",))
    for passes in ((first, second, third), (third, second, first), (unread, second, third, first)):
        assert ordered(*passes) == ["first", "second", "third"]


def test_what_cannot_be_ordered_is_refused():
    one, other = made_pass("one", ("b",), ("a", "c")), made_pass("other", ("a",), ("b",))
    with pytest.raises(UserError, match="'one' and 'other' need each other's arrays: none of them can run first"):
        ordered(one, other)
    with pytest.raises(UserError, match="the pass 'lost' needs nowhere, which nothing here makes; there are c, id, x"):
        ordered(made_pass("lost", ("nowhere",), ("c",)))
    with pytest.raises(UserError, match="the term 't' needs d, which nothing here makes; there are c, id, x"):
        ordered(made_pass("p", ("x",), ("c",)), needs=("d",))
    pick = Selection("pick", ("c",), ("rows",), lambda state, arrays, scope: {}, reads=("terms/itc",))
    with pytest.raises(UserError, match="the selection 'pick' reads of 'itc', which the config does not have"):
        ordered(made_pass("p", ("x",), ("c",)), needs=("c@rows",), selections=(pick,))


def test_two_passes_that_make_the_same_are_refused():
    one, other = made_pass("one", ("x",), ("a", "c")), made_pass("other", ("x",), ("c",))
    with pytest.raises(UserError, match="'one' and 'other' both make 'c'"):
        ordered(one, other)
    c = two_matrices_config("alike")
    c.networks.second = part("two_matrices")
    with pytest.raises(UserError, match="'net/image' and 'second/image' both make 'image/out'"):
        build_experiment(resolve(c), None)


def test_a_network_that_no_loss_depends_on_is_refused():
    def idle(trained):
        networks = {name: Network(lambda key, specs: {}, None, trained=trained) for name in ("net", "idle")}
        term = Term(("c",), no_state, lambda p, s, reps, scope: (jnp.mean(reps["c"]), {}))
        passes = made_pass("p", ("x",), ("c",)), made_pass("q", ("x",), ("d",), network="idle")
        return make_recipe(networks, passes, {"t": term}, {"t": lambda p: 1.0}, batch=("x", "id"))

    with pytest.raises(UserError, match="no loss depends on the network 'idle': leave it out, or add a term"):
        idle(True)
    assert [p.name for p in idle(False).forward] == ["p"]  # frozen: there is nothing to be trained in vain


def test_the_step_reads_what_its_terms_need_and_no_more():
    c = two_matrices_config("alike")
    experiment = build_experiment(resolve(c), None)
    assert [p.provides for p in experiment.recipe.forward] == [("image/out",), ("text/out",)]
    assert set(experiment.batch) == {"image", "text", "id"} == set(experiment.whole)
    c.task, c.terms = part("vectors"), {}
    c.terms.t = part("proximal_itc")
    assert set(build_experiment(resolve(c), None).batch) == {"image", "text", "id"}
