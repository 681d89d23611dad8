"""Sequences of tokens: which positions are words, which teachers have them, and that unread ones cost nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from smke_jax.passes.frozen import teacher_pass

from smke_jax.config import base, smoke
from smke_jax.models.teachers import TEACHERS, build_teacher
from smke_jax.objectives.base import Term, no_state
from smke_jax.parallel.mesh import make_mesh
from smke_jax.passes.base import Pass, only
from smke_jax.training.recipe import build_recipe, representation_shapes
from smke_jax.training.step import abstract_state, bad_names, make_train_step

BATCH, LENGTH, VOCAB = 8, 7, 13
MASK = (np.arange(LENGTH) < np.array([7, 6, 5, 4, 3, 2, 7, 3])[:, None]).astype(np.int32)
BATCH_SHAPES = {
    "image": jax.ShapeDtypeStruct((BATCH, 32, 32, 3), jnp.uint8),
    "text": jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32),
    "text_mask": jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32),
    "id": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
}


def recipe_of(**terms):
    c = base()
    c.terms.update(terms)
    return build_recipe(smoke(c), vocab_size=VOCAB)


def test_words_are_what_stands_between_cls_and_sep():
    student = next(p for p in recipe_of(itc={}).passes if p.name == "student")
    ids = np.random.default_rng(0).integers(1, VOCAB, (BATCH, LENGTH)).astype(np.int32)
    batch = {"text": jnp.asarray(ids), "text_mask": jnp.asarray(MASK)}
    params = jax.jit(student.init)(
        jax.random.key(0), {k: jnp.zeros(x.shape, x.dtype) for k, x in BATCH_SHAPES.items()} | batch
    )
    reps = jax.jit(lambda params, batch: student.run(params, batch, None, False))(params, batch)
    assert reps["text/tokens"].shape == (BATCH, LENGTH - 2, 32) and reps["text/mask"].shape == (BATCH, LENGTH - 2)
    np.testing.assert_array_equal(reps["text/mask"].sum(axis=1), MASK.sum(axis=1) - 2)
    for row, mask in zip(np.asarray(reps["text/mask"]), MASK, strict=True):
        words = range(1, mask.sum() - 1)  # positions of the caption that are neither [CLS] nor [SEP]
        assert [i + 1 for i in np.flatnonzero(row)] == list(words)

    # Position i of the tokens is position i + 1 of the caption: the word changed there changes most.
    changed = ids.copy()
    changed[:, 3] = (changed[:, 3] + 1) % VOCAB
    after = jax.jit(lambda params, batch: student.run(params, batch, None, False))(params, batch | {"text": changed})
    moved = np.abs(np.asarray(after["text/tokens"] - reps["text/tokens"])).max(axis=-1)
    assert np.all(moved[:1].argmax(axis=1) == 2)


@pytest.mark.parametrize("type", TEACHERS)
def test_a_teacher_provides_what_it_says(type):
    c = smoke(base())
    c.teacher.type = type
    c.teacher.update(norm_order="post")
    p = teacher_pass(build_teacher(c.teacher))
    reps = jax.eval_shape(lambda b: p.run(p.init(jax.random.key(0), b), b, None, False), BATCH_SHAPES)
    assert set(reps) == set(p.provides)
    if "target/tokens" in reps:
        assert reps["target/tokens"].shape == (BATCH, 4, 32) and reps["target/tokens"].dtype == jnp.float32


def test_only_makes_what_is_asked_for():
    made = {"a": 1, "b": 2, "c": 3}
    p = Pass("p", ("a", "b", "c"), True, None, lambda params, batch, key, train: made)
    narrowed = only(p, ("c", "a", "of another pass"))
    assert narrowed.provides == ("a", "c") and narrowed.run(None, None, None, False) == {"a": 1, "c": 3}


def test_a_step_asks_for_what_its_terms_read():
    recipe = recipe_of(itc={"levels": ("out",)})
    assert set(representation_shapes(recipe, BATCH_SHAPES)) == {"id", "image/out", "text/out"}
    params = jax.eval_shape(lambda: {"terms": {}})
    watched = [name for name in bad_names(recipe, BATCH_SHAPES, params) if name.startswith("representation/")]
    assert watched == ["representation/id", "representation/image/out", "representation/text/out"]


@pytest.mark.slow
def test_sequences_nobody_reads_cost_nothing():
    """In micro-batches, whose outputs are stacked, a step costs what it would if the passes had no sequences."""
    recipe = recipe_of(itc={"levels": ("out",)}, regress={})
    sequences = tuple(name for p in recipe.passes for name in p.provides if "tokens" in name)
    without = tuple(only(p, set(p.provides) - set(sequences)) for p in recipe.passes)

    def value(params, slots, reps, scope):
        return sum(jnp.mean(reps[name]) for name in sequences), {}

    reader = Term(sequences, no_state, value)
    weights = {**recipe.weights, "reader": lambda progress: 1.0}

    def flops(recipe):
        mesh, tx = make_mesh(2), optax.sgd(0.1)
        state = abstract_state(recipe, tx, mesh, BATCH_SHAPES)
        teacher = next(p for p in recipe.passes if p.name == "teacher")
        frozen = {"teacher": jax.eval_shape(lambda b: teacher.init(jax.random.key(0), b), BATCH_SHAPES)}
        step = make_train_step(recipe, tx, mesh, total_steps=10, micro_batch=2).lower(state, frozen, BATCH_SHAPES)
        return step.compile(compiler_options={"xla_backend_optimization_level": 0}).cost_analysis()["flops"]

    plain = flops(recipe)
    assert plain == flops(recipe._replace(passes=without))
    assert flops(recipe._replace(terms={**recipe.terms, "reader": reader}, weights=weights)) > 1.01 * plain
