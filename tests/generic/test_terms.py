"""Every objective through one suite: a new one gets all of this by a line in CASES."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smke_jax.losses.collective import Scope
from smke_jax.objectives import TERMS
from smke_jax.parallel.mesh import make_mesh, put_batch, replicated
from smke_jax.passes.base import Pass
from smke_jax.training.recipe import Recipe
from smke_jax.training.state import TrainState
from smke_jax.training.step import make_train_step, run_terms, term_key

# {case: (key of TERMS, options)}
CASES = {
    "itc": ("itc", {}),
    "itc, same image masked": ("itc", {"mask_same_image": True}),
    "itc, one level, text first": ("itc", {"pair": ("text", "image"), "levels": ("out",)}),
    "regress": ("regress", {}),
    "siglip": ("siglip", {"levels": ("fc1", "out"), "mask_same_image": True}),
    "target_itc": ("target_itc", {}),
    "target_itc, same image masked": ("target_itc", {"mask_same_image": True, "learnable_scale": True}),
    "target_itc, bank": ("target_itc", {"bank_size": 40}),
    "target_itc, random bank": (
        "target_itc",
        {"bank_size": 21, "random_bank": True, "learnable_scale": True, "mask_same_image": True},
    ),
    "vicreg": ("vicreg", {"covariance": 30.0}),
    "reconstruct": ("reconstruct", {"hidden": 7, "size": 2}),
}

BATCH, INPUT = 16, 5
SHAPES = {  # of one example
    "id": (),
    "image/fc1": (9,), "text/fc1": (9,),
    "image/out": (8,), "text/out": (8,),
    "image/head": (6,), "text/head": (6,),
    "target/cls": (6,),
    "view1/cls": (7,), "view2/cls": (7,),
    "view1/projection": (6,), "view2/projection": (6,),
    "view1/pixels": (4, 4, 3), "view2/pixels": (4, 4, 3),
}  # fmt: skip
DATA = ("id", "view1/pixels", "view2/pixels", "target/cls")  # what nothing is to be learned through

KEY = jax.random.key(3)
ALONE = Scope(key=term_key(KEY, "t"))  # one device, with the numbers of the term 't' of `run_on`

every_case = pytest.mark.parametrize("case", CASES)


def build(case):
    name, options = CASES[case]
    return TERMS[name](**options)


def made_up(names, seed):
    """Representations of BATCH examples, some of them of the same image."""
    rng = np.random.default_rng(seed)
    reps = {}
    for name in sorted(names):
        if name == "id":
            reps[name] = rng.integers(0, 10, BATCH).astype(np.int32)
        else:
            reps[name] = rng.normal(size=(BATCH, *SHAPES[name])).astype(np.float32)
    return reps


def start(term, seed=0):
    """(params, slots) with parameters moved off their start, and slots after two updates."""
    reps = made_up(term.needs, seed)
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in reps.items()}
    params, slots = term.init(jax.random.key(seed), shapes)
    params = jax.tree.map(lambda x: x + 0.1, params)
    for i in (1, 2):
        slots = term.update(slots, made_up(term.needs, seed + i))
    return params, slots


def floats(reps):
    return {k: v for k, v in reps.items() if jnp.issubdtype(v.dtype, jnp.floating)}


def test_every_term_is_covered():
    missing = set(TERMS) - {name for name, _ in CASES.values()}
    assert not missing, f"add {missing} to CASES"


def run_on(devices, term, params, slots, reps, impl="gather"):
    """(loss, metrics, gradients of params and of the floating-point reps), through the step's `run_terms`."""
    mesh = make_mesh(devices)
    recipe = Recipe((), {"t": term}, {"t": lambda progress: 1.0})
    params, slots = jax.device_put((params, slots), replicated(mesh))

    @jax.jit
    def run(params, slots, reps):
        def loss(params, learned):
            state = {"t": params}, {"t": slots}
            losses, metrics = run_terms(recipe, mesh, *state, reps | learned, key=KEY, loss_impl=impl)
            return losses["t"], metrics

        (value, metrics), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, floats(reps))
        return value, metrics, grads

    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(params, slots, put_batch(reps, mesh)))


@every_case
def test_the_same_on_any_devices_by_gather_and_ring(case):
    term = build(case)
    (params, slots), reps = start(term), made_up(term.needs, 5)
    one = run_on(1, term, params, slots, reps)
    value, metrics, (d_params, d_reps) = one

    assert value.shape == () and value.dtype == np.float32 and np.isfinite(value)
    for name, metric in metrics.items():
        assert name.startswith("t/") and metric.shape == () and np.isfinite(metric), name
    for leaf in jax.tree.leaves((d_params, d_reps)):
        assert np.all(np.isfinite(leaf))

    unsharded, _ = term.value(params, slots, {k: jnp.asarray(v) for k, v in reps.items()}, ALONE)
    np.testing.assert_allclose(value, unsharded, rtol=1e-5)
    for devices, impl in ((2, "gather"), (8, "gather"), (1, "ring"), (4, "ring")):
        other = run_on(devices, term, params, slots, reps, impl)
        near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
        jax.tree.map(near, other, one)

    # Every parameter learns, and every representation that is neither data nor target.
    for leaf in jax.tree.leaves(d_params):
        assert np.abs(leaf).max() > 1e-6
    for name in set(term.needs) - set(DATA):
        assert np.all(np.abs(d_reps[name]).max(axis=tuple(range(1, d_reps[name].ndim))) > 0), f"rows of {name}"


@every_case
def test_a_new_state_has_no_weak_types(case):
    """A weakly typed parameter turns strong in the first update, and the whole step compiles a second time."""
    term = build(case)
    shapes = {k: jax.ShapeDtypeStruct((BATCH, *SHAPES[k]), jnp.int32 if k == "id" else jnp.float32) for k in term.needs}
    state = jax.eval_shape(lambda: term.init(jax.random.key(0), shapes))
    assert not any(x.weak_type for x in jax.tree.leaves(state))


@every_case
def test_order_of_the_batch_does_not_matter(case):
    term = build(case)
    (params, slots), reps = start(term), made_up(term.needs, 6)
    order = np.random.default_rng(0).permutation(BATCH)
    value = jax.jit(lambda reps, key=ALONE.key: term.value(params, slots, reps, Scope(key=key)))
    (before, metrics), (after, shuffled) = value(reps), value({k: v[order] for k, v in reps.items()})
    if value(reps, jax.random.key(4))[0] != before:
        pytest.skip("random numbers belong to positions in the batch")
    np.testing.assert_allclose(after, before, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), shuffled, metrics)


class Recorded(dict):
    """Notes what is read; a key that the term did not declare is a KeyError as in the step."""

    def __init__(self, *args):
        super().__init__(*args)
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)


@every_case
def test_reads_what_it_needs_and_nothing_else(case):
    term = build(case)
    assert len(set(term.needs)) == len(term.needs)
    params, slots = start(term)
    reps = Recorded(made_up(term.needs, 7))
    jax.eval_shape(lambda: term.value(params, slots, reps, ALONE))
    jax.eval_shape(lambda: term.update(slots, reps))
    assert reps.read == set(term.needs)


@every_case
def test_update_keeps_the_state_as_it_is(case):
    """Shapes, types and structure: otherwise the second step would compile anew, or a checkpoint not fit."""
    term = build(case)
    _, slots = start(term)
    update = jax.jit(term.update)
    for seed in range(3):
        new = update(slots, made_up(term.needs, seed))
        assert jax.tree.structure(new) == jax.tree.structure(slots)
        jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), new, slots)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(new))
        slots = new


def linear_pass(name, needs, grad):
    """A pass of one matrix per representation: batch['x'] @ matrix."""

    def init(key, batch):
        keys = jax.random.split(key, len(needs))
        return {n: jax.random.normal(k, (INPUT, *SHAPES[n])) for n, k in zip(needs, keys, strict=True)}

    def run(params, batch, key, train):
        return {n: jnp.tensordot(batch["x"], params[n], 1) for n in needs}

    return Pass(name, needs, grad, init, run)


@pytest.mark.parametrize("case", ["regress", "target_itc, bank"])
def test_the_step_learns_through_the_student_only(case):
    """The loss depends on the teacher's weights, but its gradient with respect to them is cut."""
    term = build(case)
    learned = tuple(n for n in term.needs if n not in DATA)
    given = tuple(n for n in term.needs if n in DATA and n != "id")
    teacher, student = linear_pass("teacher", given, False), linear_pass("student", learned, True)
    recipe = Recipe((teacher, student), {"t": term}, {"t": lambda progress: 1.0})
    tx = optax.sgd(0.01)
    own, slots = start(term)
    params = {"student": student.init(jax.random.key(0), None), "terms": {"t": own}}
    frozen = {"teacher": teacher.init(jax.random.key(1), None)}
    rng = np.random.default_rng(1)
    batch = {"x": rng.normal(size=(BATCH, INPUT)).astype(np.float32), "id": np.arange(BATCH, dtype=np.int32) // 2}
    step = make_train_step(recipe, tx, make_mesh(1), total_steps=10).__wrapped__  # before jit, so without donation
    state = TrainState(jnp.int32(0), params, tx.init(params), {"t": slots}, jax.random.key(0))

    def loss(frozen):
        new, metrics = step(state, frozen, batch)
        return metrics["loss"], new.params

    (value, after), d_frozen = jax.jit(jax.value_and_grad(loss, has_aux=True))(frozen)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(d_frozen))
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(params), strict=True))
    other = jax.jit(loss)(jax.tree.map(lambda x: x[::-1] * 1.3, frozen))[0]
    assert abs(other - value) > 1e-4, "the loss does not depend on the target"
