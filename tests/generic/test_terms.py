"""Every objective through one suite: a new one gets all of this by a line in CASES.

What is compiled is one program of all cases, for each way to spread them over devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smke_jax.losses.collective import Scope
from smke_jax.objectives import TERMS
from smke_jax.objectives.base import Term
from smke_jax.parallel.mesh import make_mesh, put_batch, replicated
from smke_jax.training.recipe import Recipe, key_of
from smke_jax.training.step import run_terms

# {case: (key of TERMS, options)}.  A case combines options, as the programs of all cases take long to compile: the test
# of a term's own and tests/losses try each option by itself.
CASES = {
    "bank_itc": ("bank_itc", {"bank_size": 40}),
    "bank_itc, momentum, random bank": (
        "bank_itc",
        {"keys": "momentum/", "bank_size": 21, "random_bank": True, "same_image": "masked"},
    ),
    "classify": ("classify", {}),
    "classify, shares, smoothed": ("classify", {"label": "mixed/label", "smoothing": 0.1}),
    "cmli": ("cmli", {}),
    "cmli, projected, same image masked": ("cmli", {"width": 3, "same_image": "masked"}),
    "cosine": ("cosine", {"margin": -0.9}),
    "cosine, two levels without negatives": ("cosine", {"levels": ("fc1", "out"), "negatives": False}),
    "fused_itm": ("fused_itm", {}),
    "hard_itc": ("hard_itc", {}),
    "hard_itc, folded in, same image masked": ("hard_itc", {"fold": "batch", "same_image": "masked"}),
    "image_vq": ("image_vq", {}),
    "intra_modal": ("intra_modal", {"learnable_scale": True, "same_image": "masked"}),
    "intra_modal, mse": ("intra_modal", {"loss": "mse", "prediction": "text/out", "target": "teacher_text/out"}),
    "image_vq, restart": ("image_vq", {"commitment": 0.3, "decay": 0.5, "dead_below": 0.7, "restart": True}),
    "itc": ("itc", {}),
    "itc, same image positive": ("itc", {"same_image": "positive", "levels": ("out",)}),
    "itc, one level, text first": ("itc", {"pair": ("text", "image"), "levels": ("out",), "same_image": "masked"}),
    "itm": ("itm", {"width": 7}),
    "itm, gelu": ("itm", {"fusion": "gelu", "width": 7, "levels": ("out",)}),
    "kl": ("kl", {}),
    "layer_means": ("layer_means", {}),
    "layer_means, tokens alone": ("layer_means", {"mask": "text_mask"}),
    "mlm": ("mlm", {}),
    "mlm, taught": ("mlm", {"teacher": "momentum/", "share": 0.7, "ramp_steps": 3}),
    "momentum_itc": ("momentum_itc", {"bank_size": 40}),
    "momentum_itc, own partner, ramp": (
        "momentum_itc",
        {"bank_size": 21, "share": 0.9, "ramp_steps": 4, "same_image": "negative"},
    ),
    "mrm": ("mrm", {"hidden": 7}),
    "mrm, words alone": ("mrm", {"views": ("masked_text",)}),
    "ranking": ("ranking", {"margin": 0.9, "levels": ("fc1", "out")}),
    "ranking, symmetric, same image masked": (
        "ranking",
        {"levels": ("out",), "symmetric": True, "same_image": "masked"},
    ),
    "proximal_itc": ("proximal_itc", {"num_images": 9, "same_image": "masked", "level": "fc1"}),
    "regress": ("regress", {}),
    "relational_kl, learned scale, without the diagonal": (
        "relational_kl",
        {
            "prediction": ("text/out", "image/out"),
            "target": "target/logits",
            "learnable_scale": True,
            "diagonal": False,
        },
    ),
    "score": ("score", {"prediction": "score/logits", "label": "score/label"}),
    "score_kl": ("score_kl", {"learnable_scale": True}),
    "siglip": ("siglip", {"levels": ("fc1", "out"), "same_image": "masked"}),
    "siglip, same image positive": ("siglip", {"same_image": "positive"}),
    "structure": ("structure", {"levels": 2, "temperature": 0.4}),
    "target_cmli": ("target_cmli", {"width": 3}),
    "target_cmli_cosine": ("target_cmli_cosine", {}),
    "target_code": ("target_code", {"num_codes": 6}),
    "target_itc": ("target_itc", {}),
    "target_itc, bank": ("target_itc", {"bank_size": 40}),
    "target_itc, random bank": (
        "target_itc",
        {"bank_size": 21, "random_bank": True, "learnable_scale": True, "same_image": "masked"},
    ),
    "vicreg": ("vicreg", {"covariance": 30.0}),
    "vicreg, image and text": ("vicreg", {"pair": ("image/out", "text/out"), "invariance": 2.0}),
    "vicreg, expanded": ("vicreg", {"pair": ("target/cls", "text/out"), "expander": (7, 5)}),
    "mim": ("mim", {"watched": True}),
    "reconstruct": ("reconstruct", {"hidden": 7, "size": 2}),
}

BATCH = 16
SHAPES = {  # of one example
    "id": (),
    "target/feature": (7,), "words/feature": (5,),
    "image/fc1": (9,), "text/fc1": (9,),
    "image/out": (8,), "text/out": (8,),
    "image/head": (6,), "text/head": (6,),
    "image/tokens": (4, 8), "text/tokens": (5, 8), "text/mask": (5,),
    "image/head_tokens": (4, 6), "text/head_tokens": (5, 6),
    "momentum/image/out": (8,), "momentum/text/out": (8,),
    "teacher_image/out": (8,), "teacher_text/out": (8,), "hard/negatives": (3, 8),
    "code/latent": (3,), "code/similarity": (12,), "code/reconstruction": (6,), "target/code": (),
    "class/logits": (6,), "label": (), "mixed/label": (6,),
    "score/logits": (1,), "score/label": (),
    "target/cls": (6,), "target/logits": (6,), "target/tokens": (4, 6),
    "student/layers": (5, 6), "teacher/layers": (5, 6), "text_mask": (5,),
    "mim/error": (4,), "mim/target": (4, 6), "mim/prediction": (4, 6),
    "view1/cls": (7,), "view2/cls": (7,),
    "view1/projection": (6,), "view2/projection": (6,),
    "view1/pixels": (4, 4, 3), "view2/pixels": (4, 4, 3),
    "pair/match": (2,), "wrong_text/match": (2,), "wrong_image/match": (2,),
    "masked_text/logits": (3, 6), "masked_text/labels": (3,), "momentum/masked_text/logits": (3, 6),
    "masked_text/fused": (5, 6), "masked_text/chosen": (5,), "momentum/pair/text": (5, 6),
    "masked_image/fused": (4, 6), "masked_image/chosen": (4,), "momentum/pair/image": (4, 6),
}  # fmt: skip
DATA = (
    "id",
    "label",
    "mixed/label",
    "score/label",
    "text/mask",
    "text_mask",
    "teacher/layers",
    "target/feature",
    "words/feature",
    "view1/pixels",
    "view2/pixels",
    "target/cls",
    "target/logits",
    "target/tokens",
    "target/code",
    "code/similarity",
    "momentum/image/out",
    "momentum/text/out",
    "momentum/masked_text/logits",
    "mim/prediction",
    "mim/target",
    "momentum/pair/image",
    "momentum/pair/text",
    "masked_image/chosen",
    "masked_text/chosen",
    "masked_text/labels",
    "id@hard_text",
    "id@hard_image",
    "teacher_image/out",
    "teacher_text/out",
    "hard/negatives",
)  # what nothing is to be learned through

KEY = jax.random.key(3)
WAYS = {"8 devices": (8, "gather"), "a ring of 4": (4, "ring")}

every_case = pytest.mark.parametrize("case", CASES)


def build(case):
    name, options = CASES[case]
    return TERMS[name](**options)


def shape_of(name):
    return SHAPES[name.partition("@")[0]]


def made_up(names, seed):
    """Representations of BATCH examples, some of them of the same image."""
    rng = np.random.default_rng(seed)
    reps = {}
    for name in sorted(names):
        if name == "id":
            reps[name] = rng.integers(0, 10, BATCH).astype(np.int32)
        elif name.startswith("id@"):  # chosen of other images
            reps[name] = rng.integers(10, 20, BATCH).astype(np.int32)
        elif name in ("target/code", "label"):
            reps[name] = rng.integers(0, 6, BATCH).astype(np.int32)
        elif name == "masked_text/labels":  # each row has one or more
            reps[name] = np.where(np.arange(3) < rng.integers(1, 4, (BATCH, 1)), rng.integers(0, 6, (BATCH, 3)), -1)
            reps[name] = reps[name].astype(np.int32)
        elif name.endswith("/chosen"):
            width = shape_of(name)[0]
            reps[name] = rng.permuted(np.arange(width) < rng.integers(1, width, (BATCH, 1)), axis=1)
        elif name in ("text/mask", "text_mask"):
            reps[name] = (np.arange(5) < rng.integers(1, 6, (BATCH, 1))).astype(np.int32)
        else:
            reps[name] = rng.normal(size=(BATCH, *shape_of(name))).astype(np.float32)
    return reps


def reps_of_all(seed):
    return {case: made_up(build(case).needs, seed) for case in CASES}


def floats(reps):
    return {k: v for k, v in reps.items() if jnp.issubdtype(v.dtype, jnp.floating)}


@jax.jit
def update_all(slots, reps):
    return {case: build(case).update(slots[case], reps[case]) for case in CASES}


@jax.jit
def value_all(params, slots, reps, key):
    """{case: (loss, metrics)} on one device, without shard_map."""
    scope = lambda case: Scope(key=key_of(key, case))  # noqa: E731
    return {case: build(case).value(params[case], slots[case], reps[case], scope(case)) for case in CASES}


@functools.cache
def started():
    """({case: parameters moved off their start}, {case: slots after two updates})."""

    @jax.jit
    def begin():
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), reps_of_all(0))
        both = {case: build(case).init(jax.random.key(0), shapes[case]) for case in CASES}
        params = {case: jax.tree.map(lambda x: x + 0.1, own) for case, (own, _) in both.items()}
        return params, {case: slots for case, (_, slots) in both.items()}

    params, slots = begin()
    for seed in (1, 2):
        slots = update_all(slots, reps_of_all(seed))
    return params, slots


def own_name(case, name):
    """Of the case's own copy of a representation."""
    return f"{case}:{name.replace('@', ' of ')}"


def renamed(case):
    """The case's term, reading its own copies of the representations."""
    term = build(case)
    mine = {own_name(case, name): name for name in term.needs}

    def value(params, slots, reps, scope):
        return term.value(params, slots, {name: reps[own] for own, name in mine.items()}, scope)

    return Term(tuple(mine), term.init, value, spread=term.spread)


@functools.cache
def results(devices, impl):
    """{case: (loss, metrics, gradients of parameters and of floating-point representations)} by the step's run_terms.

    Every case has representations of its own, so the gradients of the sum are those of each.
    """
    mesh = make_mesh(devices)
    recipe = Recipe({}, (), {case: renamed(case) for case in CASES}, {})
    params, slots = jax.device_put(started(), replicated(mesh))
    reps = {own_name(case, name): x for case, own in reps_of_all(5).items() for name, x in own.items()}

    @jax.jit
    def run(params, slots, reps):
        def loss(params, learned):
            losses, metrics = run_terms(recipe, mesh, params, slots, reps | learned, key=KEY, loss_impl=impl)
            return sum(losses.values()), (losses, metrics)

        (_, found), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, floats(reps))
        return *found, *grads

    with jax.default_matmul_precision("highest"):
        losses, metrics, d_params, d_reps = jax.device_get(run(params, slots, put_batch(reps, mesh)))

    def of(case, tree, separator):
        return {k.removeprefix(case + separator): x for k, x in tree.items() if k.startswith(case + separator)}

    return {case: (losses[case], of(case, metrics, "/"), d_params[case], of(case, d_reps, ":")) for case in CASES}


def test_every_term_is_covered():
    ours = {name for name, builder in TERMS.items() if builder.__module__.startswith("smke_jax.")}
    missing = ours - {name for name, _ in CASES.values()}
    assert not missing, f"add {missing} to CASES"


@every_case
def test_one_device_gives_what_the_term_says_and_everything_learns(case):
    value, metrics, d_params, d_reps = results(1, "gather")[case]
    assert value.shape == () and value.dtype == np.float32 and np.isfinite(value)
    for name, metric in metrics.items():
        assert metric.shape == () and np.isfinite(metric), name
    for leaf in jax.tree.leaves((d_params, d_reps)):
        assert np.all(np.isfinite(leaf))
    unsharded, own = value_all(*started(), reps_of_all(5), KEY)[case]
    np.testing.assert_allclose(value, unsharded, rtol=1e-5)
    assert set(own) == set(metrics)

    # Every parameter learns, and every representation that is neither data nor target.
    for leaf in jax.tree.leaves(d_params):
        assert np.abs(leaf).max() > 1e-6
    for name in set(build(case).needs) - set(DATA):
        gradient = np.abs(d_reps[own_name("", name)[1:]])
        assert np.all(gradient.max(axis=tuple(range(1, gradient.ndim))) > 0), f"rows of {name}"


@pytest.mark.parametrize("way", WAYS)
@every_case
def test_the_same_on_any_devices_by_gather_and_ring(case, way):
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(near, results(*WAYS[way])[case], results(1, "gather")[case])


@every_case
def test_a_new_state_has_no_weak_types(case):
    """A weakly typed parameter turns strong in the first update, and the whole step compiles a second time."""
    term = build(case)
    whole = lambda name: jnp.int32 if name in ("id", "label") else jnp.float32  # noqa: E731
    shapes = {k: jax.ShapeDtypeStruct((BATCH, *shape_of(k)), whole(k)) for k in term.needs}
    state = jax.eval_shape(lambda: term.init(jax.random.key(0), shapes))
    assert not any(x.weak_type for x in jax.tree.leaves(state))


@every_case
def test_order_of_the_batch_does_not_matter(case):
    order = np.random.default_rng(0).permutation(BATCH)
    shuffled = jax.tree.map(lambda x: x[order], reps_of_all(6))
    before, after, other = (
        value_all(*started(), reps, key)[case]
        for reps, key in ((reps_of_all(6), KEY), (shuffled, KEY), (reps_of_all(6), jax.random.key(4)))
    )
    if other[0] != before[0]:
        pytest.skip("random numbers belong to positions in the batch")
    np.testing.assert_allclose(after[0], before[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after[1], before[1])


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
    params, slots = (tree[case] for tree in started())
    reps = Recorded(made_up(term.needs, 7))
    jax.eval_shape(lambda: term.value(params, slots, reps, Scope(key=KEY)))
    jax.eval_shape(lambda: term.update(slots, reps))
    assert reps.read == set(term.needs)


@every_case
def test_update_keeps_the_state_as_it_is(case):
    """Shapes, types and structure: otherwise the second step would compile anew, or a checkpoint not fit."""
    slots = started()[1][case]
    for seed in range(3):
        new = update_all(started()[1] | {case: slots}, reps_of_all(seed))[case]
        assert jax.tree.structure(new) == jax.tree.structure(slots)
        jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), new, slots)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(new))
        slots = new
