"""Sequences of tokens: which positions are words, which teachers have them, and that unread ones cost nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smke_jax.forms import FORMS
from smke_jax.models.teachers import TEACHERS
from smke_jax.networks import NETWORKS
from smke_jax.networks.base import Network
from smke_jax.objectives.base import Term, no_state
from smke_jax.parallel.mesh import make_mesh
from smke_jax.parts import itc, part
from smke_jax.passes.base import Pass, narrowed
from smke_jax.training.build import build_experiment, resolve
from smke_jax.training.recipe import make_recipe, shapes_of
from smke_jax.training.step import abstract_state, make_train_step

BATCH, LENGTH, VOCAB = 8, 7, 13
MASK = (np.arange(LENGTH) < np.array([7, 6, 5, 4, 3, 2, 7, 3])[:, None]).astype(np.int32)
FACTS = {"vocab_size": VOCAB, "num_images": 16}


def experiment_of(**terms):
    form = FORMS["smoke"]
    c = form.run()
    c.batch_size, c.num_devices, c.task = BATCH, 2, form.pairs()
    c.task.update(max_length=LENGTH, vocab_size=VOCAB)
    c.networks.teacher, c.networks.student = form.teacher(dtype="float32"), form.student(dtype="float32")
    for name, term in terms.items():
        c.terms[name] = term
    return build_experiment(resolve(c), None, FACTS)


def test_words_are_what_stands_between_cls_and_sep():
    experiment = experiment_of(itc=itc())
    encode = next(p for p in experiment.recipe.passes if "text/tokens" in p.provides)
    ids = np.random.default_rng(0).integers(1, VOCAB, (BATCH, LENGTH)).astype(np.int32)
    batch = {"text": jnp.asarray(ids), "text_mask": jnp.asarray(MASK)}
    params = {"student": jax.jit(experiment.recipe.networks["student"].init)(jax.random.key(0), {})}
    run = jax.jit(lambda params, batch: encode.run(params, batch, None, False))
    reps = run(params, batch)
    assert reps["text/tokens"].shape == (BATCH, LENGTH - 2, 32) and reps["text/mask"].shape == (BATCH, LENGTH - 2)
    np.testing.assert_array_equal(reps["text/mask"].sum(axis=1), MASK.sum(axis=1) - 2)
    for row, mask in zip(np.asarray(reps["text/mask"]), MASK, strict=True):
        words = range(1, mask.sum() - 1)  # positions of the caption that are neither [CLS] nor [SEP]
        assert [i + 1 for i in np.flatnonzero(row)] == list(words)

    # Position i of the tokens is position i + 1 of the caption: the word changed there changes most.
    changed = ids.copy()
    changed[:, 3] = (changed[:, 3] + 1) % VOCAB
    moved = np.abs(np.asarray(run(params, batch | {"text": changed})["text/tokens"] - reps["text/tokens"])).max(axis=-1)
    assert np.all(moved[:1].argmax(axis=1) == 2)


@pytest.mark.parametrize("type", TEACHERS)
def test_a_teacher_provides_what_it_says(type):
    # Two by two patches of 16 pixels, or two by two cells of 32.
    size = 64 if type == "efficientnet_lite" else 32
    sizes = {"image_size": size, "patch_size": 16, "width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
    model = part(type, **{k: v for k, v in sizes.items() if k in part(type)}).to_dict()
    network = NETWORKS["frozen"](start="random", model=model)
    size = network.sizes["teacher_image"]
    specs = {"image": jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.uint8)}
    (p,) = network.forward("teacher", specs)
    init = lambda: network.init(jax.random.key(0), specs)  # noqa: E731
    reps = jax.eval_shape(lambda b: p.run({"teacher": init()}, b, None, False), specs)
    assert set(reps) == set(p.provides)
    if "target/tokens" in reps:
        assert reps["target/tokens"].shape == (BATCH, 4, 32) and reps["target/tokens"].dtype == jnp.float32


def test_only_makes_what_is_asked_for():
    made = {"a": 1, "b": 2, "c": 3}
    p = Pass("p", (), (), ("a", "b", "c"), lambda params, arrays, key, train: made)
    narrow = narrowed(p, ("c", "a", "of another pass"))
    assert narrow.provides == ("a", "c") and narrow.run(None, None, None, False) == {"a": 1, "c": 3}


def test_a_step_asks_for_what_its_terms_read():
    experiment = experiment_of(itc=itc(levels=("out",)))
    made = set(shapes_of(experiment.recipe, experiment.batch).arrays) - set(experiment.batch)
    assert made == {"image/out", "text/out"} and set(experiment.batch) == {"id", "image", "text", "text_mask"}


def test_sequences_nobody_reads_cost_nothing():
    """In micro-batches, whose outputs are stacked, a step costs what it would if the pass had no sequences."""
    shapes = {"x": jax.ShapeDtypeStruct((16, 6, 32), jnp.float32), "id": jax.ShapeDtypeStruct((16,), jnp.int32)}

    def init(key, specs):
        return {"w": jax.random.normal(key, (32, 8)), "v": jax.random.normal(key, (8, 64))}

    def run(params, arrays, key, train):
        tokens = jax.nn.gelu(arrays["x"] @ params["net"]["w"])
        return {"out": tokens[:, 0], "tokens": tokens @ params["net"]["v"]}

    encode = Pass("encode", ("net",), ("x",), ("out", "tokens"), run)
    terms = {name: Term((name,), no_state, lambda p, s, reps, scope, n=name: (jnp.mean(reps[n] ** 2), {}))
             for name in encode.provides}  # fmt: skip

    def flops(encode, *read):
        own, weights = {name: terms[name] for name in read}, {name: lambda progress: 1.0 for name in read}
        recipe = make_recipe({"net": Network(init, None)}, (encode,), own, weights, batch=shapes)
        mesh, tx = make_mesh(2), optax.sgd(0.1)
        step = make_train_step(recipe, tx, mesh, total_steps=10, micro_batch=2)
        return step.lower(abstract_state(recipe, tx, mesh, shapes), {}, shapes).compile().cost_analysis()["flops"]

    plain = flops(encode, "out")
    assert plain == flops(narrowed(encode, ("out",)), "out")
    assert flops(encode, "out", "tokens") > 2 * plain
