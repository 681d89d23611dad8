"""The whole train step on a tiny recipe: devices, donation, what is frozen, the tensor that went bad, weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smke_jax.config import base, smoke
from smke_jax.losses.collective import own_rows
from smke_jax.objectives.base import Term
from smke_jax.parallel.mesh import make_mesh, put_batch, replicated
from smke_jax.passes.base import Pass
from smke_jax.training.optimizer import build_optimizer
from smke_jax.training.recipe import Recipe, build_recipe
from smke_jax.training.state import TrainState
from smke_jax.training.step import bad_names, init_state, make_train_step

BATCH, LENGTH, VOCAB, BANK, STEPS = 8, 5, 13, 11, 3


def config(optimizer="adamw", lr_rules=()):
    c = base()
    c.terms.itc = {"levels": ("fc1", "out"), "mask_same_image": True}
    c.terms.target_itc = {"bank_size": 1}
    c = smoke(c)
    c.terms.target_itc.bank_size = BANK
    for part in (c.student.image, c.student.text, c.student.shared, c.teacher):
        part.update({k: v for k, v in dict(width=16, mlp_dim=24).items() if k in part})
    c.student.image.update(image_size=16, patch_size=8)
    c.teacher.update(image_size=16, patch_size=8)
    c.optimizer.update(name=optimizer, learning_rate=1e-2 * 256 / BATCH, warmup_fraction=0.0, lr_rules=lr_rules)
    return c


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        yield {
            "image": rng.integers(0, 256, (BATCH, 16, 16, 3), dtype=np.uint8),
            "text": rng.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32),
            "text_mask": (np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (BATCH, 1))).astype(np.int32),
            "id": rng.integers(0, 6, BATCH).astype(np.int32),
        }


@functools.cache
def start_of(optimizer):
    """(first state without its key, the key's numbers, frozen parameters) as NumPy arrays."""
    c = config(optimizer)
    recipe, batch = build_recipe(c, vocab_size=VOCAB), next(batches())
    tx, _ = build_optimizer(c.optimizer, batch_size=BATCH, total_steps=10)
    state = init_state(recipe, tx, make_mesh(1), batch, seed=0)
    teacher = next(p for p in recipe.passes if p.name == "teacher")
    rows = {k: v[:1] for k, v in batch.items()}
    frozen = jax.jit(lambda: {"teacher": teacher.init(jax.random.key(9), rows)})()
    return jax.device_get((state.replace(rng=None), jax.random.key_data(state.rng), frozen))


class Run:
    """The recipe on some devices."""

    def __init__(self, config, devices):
        self.mesh = make_mesh(devices)
        self.recipe = build_recipe(config, vocab_size=VOCAB)
        self.tx, _ = build_optimizer(config.optimizer, batch_size=BATCH, total_steps=10)
        self.batch = next(batches())
        self.first, self.rng, frozen = start_of(config.optimizer.name)
        self.frozen = jax.device_put(frozen, replicated(self.mesh), may_alias=False)
        self.jitted = make_train_step(self.recipe, self.tx, self.mesh, total_steps=10)
        self.lowered = self.jitted.lower(self.start(), self.frozen, put_batch(self.batch, self.mesh))
        # Half the time to compile; nothing here is about speed.
        self.step = self.lowered.compile(compiler_options={"xla_backend_optimization_level": 0})

    def start(self):
        state = self.first.replace(rng=jax.random.wrap_key_data(self.rng))
        return jax.device_put(state, replicated(self.mesh), may_alias=False)

    def train(self, state=None):
        state, history = state or self.start(), []
        for batch in batches():
            state, metrics = self.step(state, self.frozen, put_batch(batch, self.mesh))
            history.append(jax.device_get(metrics))
        return state, history


@pytest.fixture(scope="module")
def run():
    """AdamW on two devices: what all tests but the comparison of devices use."""
    return Run(config(), 2)


@pytest.fixture(scope="module")
def trained(run):
    state, history = run.train()
    return jax.device_get(state), history


def paths(tree):
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]


def assert_agree(one, other, tolerance):
    for path, a, b in zip(paths(one), jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=tolerance, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_three_steps_agree_on_1_2_and_8_devices(optimizer, trained):
    results = {}
    for devices in (1, 2, 8):
        if (optimizer, devices) == ("adamw", 2):
            results[devices] = trained
        else:
            state, history = Run(config(optimizer), devices).train()
            results[devices] = jax.device_get(state), history
    state, history = results[1]
    assert [h["first_bad"] for h in history] == [-1] * STEPS
    assert state.step == STEPS
    for devices in (2, 8):
        other_state, other_history = results[devices]
        assert_agree(state.params, other_state.params, 2e-5)
        assert_agree(state.slots, other_state.slots, 1e-5)
        assert_agree(history, other_history, 1e-4)


def test_everything_trained_moves_and_the_bank_fills(run, trained):
    state, history = trained
    start = jax.device_get(run.start())
    for path, a, b in zip(
        paths(start.params), jax.tree.leaves(start.params), jax.tree.leaves(state.params), strict=True
    ):
        if path == "student/text_encoder/type_embedding":
            assert np.any(a[0] != b[0])  # row 1 gets weight decay at most
        else:
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


def test_metrics(trained):
    itc = [f"{what}_{level}" for what in ("loss", "accuracy", "logit_scale") for level in ("fc1", "out")]
    target = ["loss_image", "loss_text", "accuracy_image", "accuracy_text", "logit_scale", "bank_filled", "loss"]
    expected = {"loss", "grad_norm", "first_bad", "itc/loss", "collisions"}
    expected |= {f"itc/{k}" for k in itc} | {f"target_itc/{k}" for k in target}
    for metrics in trained[1]:
        assert set(metrics) == expected
        assert all(np.shape(v) == () and np.isfinite(v) for v in metrics.values())
        np.testing.assert_allclose(metrics["loss"], metrics["itc/loss"] + metrics["target_itc/loss"], rtol=1e-6)
        assert metrics["grad_norm"] > 0
    for metrics, batch in zip(trained[1], batches(), strict=True):
        ids = batch["id"]
        collisions = np.mean([(ids == i).sum() > 1 for i in ids])
        np.testing.assert_allclose(metrics["collisions"], collisions)


def test_the_state_is_donated_and_the_teacher_is_not(run):
    state, batch = run.start(), put_batch(run.batch, run.mesh)
    teacher = jax.device_get(run.frozen)
    new, _ = run.step(state, run.frozen, batch)
    assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.opt_state, state.slots)))
    assert not any(x.is_deleted() for x in jax.tree.leaves((run.frozen, batch)))
    # On a CPU a buffer that no output fits survives its donation, so ask what was compiled too.
    (of_state, of_frozen, of_batch), _ = run.lowered.args_info
    assert all(x.donated for x in jax.tree.leaves(of_state))
    assert not any(x.donated for x in jax.tree.leaves((of_frozen, of_batch)))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.frozen), teacher)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(new))
    assert all(x.sharding == replicated(run.mesh) for x in jax.tree.leaves(new.params))


def test_the_step_compiles_once(run):
    """The state comes out with the types it went in with, weak ones included; otherwise the second step compiles."""
    kind = lambda x: (x.shape, x.dtype, x.weak_type)  # noqa: E731
    state = jax.eval_shape(lambda: init_state(run.recipe, run.tx, run.mesh, run.batch, seed=0))
    new, _ = jax.eval_shape(run.jitted, state, run.frozen, run.batch)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for path, a, b in zip(paths(state), jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert kind(a) == kind(b), path


# ---- what went bad


def first_bad(run, state, frozen=None, batch=None):
    names = bad_names(run.recipe, run.batch, state.params)
    _, metrics = run.step(state, frozen or run.frozen, put_batch(batch or run.batch, run.mesh))
    at = int(metrics["first_bad"])
    return None if at == -1 else names[at]


def with_nan(tree, *keys):
    """`tree` with one NaN in the leaf at `keys`."""
    if not keys:
        return tree.at[(0,) * tree.ndim].set(jnp.nan)
    return {**tree, keys[0]: with_nan(tree[keys[0]], *keys[1:])}


@pytest.mark.parametrize(
    "keys",
    [
        ("student", "image_encoder", "block_0", "mlp", "fc1", "kernel"),
        ("student", "text_encoder", "embedding_norm", "scale"),
        ("student", "head", "bias"),
        ("terms", "itc", "logit_scale"),
    ],
    ids="/".join,
)
def test_a_bad_parameter_is_named(run, keys):
    state = run.start()
    state = state.replace(params=jax.device_put(with_nan(state.params, *keys), replicated(run.mesh)))
    assert first_bad(run, state) == "/".join(("params", *keys))


def test_nothing_bad_is_nobody(run):
    assert first_bad(run, run.start()) is None


def test_bad_teacher_weights_show_in_the_target(run):
    teacher = with_nan(run.frozen["teacher"], "block_0", "mlp", "fc2", "kernel")
    frozen = {"teacher": jax.device_put(teacher, replicated(run.mesh))}
    assert first_bad(run, run.start(), frozen=frozen) == "representation/target/cls"


def test_an_infinite_parameter_is_bad_too(run):
    state = run.start()
    params = jax.tree.map(lambda x: x, state.params)
    params["student"]["type_scale"]["gamma"] = jnp.full(16, jnp.inf, jnp.float32)
    state = state.replace(params=jax.device_put(params, replicated(run.mesh)))
    assert first_bad(run, state) == "params/student/type_scale/gamma"


def test_names_are_of_everything_watched(run):
    """Position by position what the step counts: parameters, representations, losses, gradients, new parameters."""
    params = jax.eval_shape(lambda: run.start().params)
    names = bad_names(run.recipe, run.batch, params)
    own = paths(params)
    sides = [f"{side}/{level}" for side in ("image", "text") for level in ("fc1", "out", "head")]
    assert names == (
        [f"params/{p}" for p in own]
        + [f"representation/{n}" for n in sorted(["id", "target/cls", *sides])]
        + ["loss/itc", "loss/target_itc"]
        + [f"gradient/{p}" for p in own]
        + [f"updated params/{p}" for p in own]
    )


# ---- made-up recipes, small enough to say what has to come out


def scalar_recipe(value, weights):
    """Parameters {'w': ()}; one representation 'w·x'; terms whose loss is value[name](mean of it)."""

    def run(params, batch, key, train):
        return {"y": params["w"] * batch["x"]}

    model = Pass("model", ("y",), True, lambda key, batch: {"w": jnp.ones(())}, run)

    def term(function):
        return Term(("y",), lambda key, shapes: ({}, ()), lambda p, s, reps, scope: (function(reps["y"]), {}))

    return Recipe((model,), {name: term(f) for name, f in value.items()}, weights)


def one_step(recipe, w=1.0, step=0, total_steps=10, devices=2):
    mesh, tx = make_mesh(devices), optax.sgd(0.5)
    params = {"model": {"w": jnp.float32(w)}, "terms": {name: {} for name in recipe.terms}}
    slots = {name: () for name in recipe.terms}
    state = TrainState(jnp.int32(step), params, tx.init(params), slots, jax.random.key(0))
    batch = {"x": np.arange(1.0, 5.0, dtype=np.float32), "id": np.arange(4, dtype=np.int32)}
    state = jax.device_put(state, replicated(mesh))
    train_step = make_train_step(recipe, tx, mesh, total_steps=total_steps)
    return (*jax.device_get(train_step(state, {}, put_batch(batch, mesh))), batch, params)


@pytest.mark.parametrize("step,weight", [(0, 1.0), (5, 2.0), (10, 3.0)])
def test_final_weight_is_a_ramp(step, weight):
    """Weights as `build_recipe` makes them: 1 at the start to `final_weight` at the end of training."""
    c = config()
    c.terms.itc.update({"weight": 2.0})
    c.terms.target_itc = {"weight": 1.0, "final_weight": 3.0}
    weights = build_recipe(c, vocab_size=VOCAB).weights
    recipe = scalar_recipe({"itc": jnp.mean, "target_itc": lambda y: 10 * jnp.mean(y)}, weights)
    state, metrics, _, _ = one_step(recipe, step=step)
    np.testing.assert_allclose(metrics["itc/loss"], 2.5)
    np.testing.assert_allclose(metrics["target_itc/loss"], 25.0)
    np.testing.assert_allclose(metrics["loss"], 2 * 2.5 + weight * 25.0, rtol=1e-6)
    np.testing.assert_allclose(state.params["model"]["w"], 1 - 0.5 * (2 * 2.5 + weight * 25.0), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], 2 * 2.5 + weight * 25.0, rtol=1e-6)
    assert state.step == step + 1


def test_terms_without_weight_are_left_out_and_ramps_from_0_are_not():
    c = config()
    c.terms.itc.update({"weight": 0.0})
    c.terms.target_itc.update({"weight": 0.0, "final_weight": 1.0})
    recipe = build_recipe(c, vocab_size=VOCAB)
    assert list(recipe.terms) == ["target_itc"]
    assert [float(recipe.weights["target_itc"](p)) for p in (0.0, 0.25, 1.0)] == [0.0, 0.25, 1.0]


def test_a_bad_loss_and_a_bad_gradient_are_named():
    # At 0 the logarithm is infinite; the root is not, but its gradient is.
    for function, name in ((jnp.log, "loss/t"), (jnp.sqrt, "gradient/model/w")):
        recipe = scalar_recipe({"t": lambda y, f=function: f(jnp.mean(y) - 2.5)}, {"t": lambda progress: 1.0})
        _, metrics, batch, params = one_step(recipe, devices=1)
        assert bad_names(recipe, batch, params)[metrics["first_bad"]] == name


def test_a_factor_of_0_freezes():
    model = Pass(
        "model",
        ("y",),
        True,
        lambda key, batch: {"kept": {"kernel": jnp.ones((1, 2))}, "moved": {"kernel": jnp.ones((1, 2))}},
        lambda p, batch, key, train: {"y": batch["x"][:, None] @ (p["kept"]["kernel"] * p["moved"]["kernel"])},
    )
    recipe = Recipe((model,), scalar_recipe({"t": jnp.mean}, {}).terms, {"t": lambda progress: 1.0})
    c = config(lr_rules=(("kept", 0.0),))
    tx, _ = build_optimizer(c.optimizer, batch_size=BATCH, total_steps=10)
    batch, mesh = {"x": np.arange(1.0, 5.0, dtype=np.float32), "id": np.arange(4, dtype=np.int32)}, make_mesh(2)
    state = init_state(recipe, tx, mesh, batch, seed=0)
    state, metrics = make_train_step(recipe, tx, mesh, total_steps=10)(state, {}, put_batch(batch, mesh))
    assert np.all(state.params["model"]["kept"]["kernel"] == 1)
    assert np.all(state.params["model"]["moved"]["kernel"] != 1)


def test_a_term_draws_the_same_on_any_devices_and_anew_in_every_step_and_term():
    def value(params, slots, reps, scope):
        drawn = own_rows(jax.random.uniform(scope.key, (4,)), scope)
        return jnp.mean(drawn * reps["y"]), {}

    model = scalar_recipe({}, {}).passes
    term = Term(("y",), lambda key, shapes: ({}, ()), value)
    recipe = Recipe(model, {"one": term, "two": term}, dict.fromkeys(("one", "two"), lambda progress: 1.0))
    seen = {}
    for step in (0, 1):
        for devices in (1, 2, 4):
            _, metrics, _, _ = one_step(recipe, step=step, devices=devices)
            seen[step, devices] = metrics["one/loss"], metrics["two/loss"]
        np.testing.assert_allclose(seen[step, 2], seen[step, 1], rtol=1e-6)
        np.testing.assert_allclose(seen[step, 4], seen[step, 1], rtol=1e-6)
    assert len({float(x) for step in (0, 1) for x in seen[step, 1]}) == 4
