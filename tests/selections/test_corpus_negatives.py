"""Negatives from a corpus spread over devices: those of a sort in NumPy, and a step learns by the queries alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smke_jax.losses.contrastive import normalise
from smke_jax.objectives.hard_itc import hard_itc
from smke_jax.parallel.mesh import make_mesh, put_batch, put_spread
from smke_jax.selections.corpus_negatives import corpus_negatives
from smke_jax.training.step import run_selection

BATCH, WIDTH, COUNT, K = 8, 4, 30, 3
rng = np.random.default_rng(0)
QUERIES, KEYS = (rng.normal(size=(BATCH, WIDTH)).astype(np.float32) for _ in range(2))
IDS = np.array([0, 0, 1, 2, 3, 3, 9, 4], np.int32)
OWNERS = rng.integers(0, 10, COUNT).astype(np.int32)
ROWS = np.asarray(normalise(rng.normal(size=(COUNT, WIDTH)))).astype(np.float16)
NAME = "teacher_text/out"


def chosen(mesh, queries):
    selection = corpus_negatives(k=K, block=4)
    arrays = put_batch({"id": IDS}, mesh) | {"image/out": queries}
    state = {"assets/corpus": put_spread({NAME: ROWS, "id": OWNERS}, mesh)}
    return run_selection(selection, mesh, state, arrays, key=jax.random.key(0))["hard/negatives"]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_nearest_of_other_images(devices):
    mesh = make_mesh(devices)
    found = jax.jit(lambda x: chosen(mesh, x))(put_batch({"x": 3 * QUERIES}, mesh)["x"])
    products = np.asarray(normalise(QUERIES)) @ ROWS.astype(np.float32).T
    products[IDS[:, None] == OWNERS] = -np.inf
    expected = ROWS[np.argsort(-products, axis=1, kind="stable")[:, :K]]
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_what_is_chosen_has_no_part_in_the_gradient():
    """The gradient by the queries is that of the loss with the same negatives given."""
    mesh, term = make_mesh(1), hard_itc(learnable_scale=False)

    def loss(queries, negatives):
        reps = {"image/out": queries, NAME: jnp.asarray(KEYS), "hard/negatives": negatives}
        return term.value({}, (), reps, None)[0]

    searched = jax.grad(lambda x: loss(x, chosen(mesh, x)))(jnp.asarray(QUERIES))
    given = jax.grad(loss)(jnp.asarray(QUERIES), chosen(mesh, jnp.asarray(QUERIES)))
    np.testing.assert_allclose(searched, given, rtol=1e-6)
    assert np.abs(given).max() > 1e-3
