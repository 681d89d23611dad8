"""Hard negatives: how they are drawn, by which temperature, over the global batch, and that no gradient comes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smke_jax.errors import UserError
from smke_jax.losses.collective import ALONE
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.matching import draw_negatives
from smke_jax.networks.base import Network
from smke_jax.objectives.itc import itc
from smke_jax.objectives.itm import itm
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.passes.base import Pass
from smke_jax.selections.hard_negatives import hard_negatives
from smke_jax.training.recipe import key_of, make_recipe
from smke_jax.training.step import init_state, make_train_step, run_selection

BATCH, WIDTH = 8, 5
IDS = np.array([0, 0, 1, 2, 3, 3, 3, 4], np.int32)

rng = np.random.default_rng(0)
QUERIES, CANDIDATES = (np.asarray(normalise(rng.normal(size=(BATCH, WIDTH)))) for _ in range(2))
KEY = jax.random.key(1)


@pytest.mark.parametrize("same_image", [False, True], ids=["own", "same image"])
@pytest.mark.parametrize("hardness", [0.0, 2.5], ids=["uniform", "hard"])
def test_drawn_as_often_as_the_softmax_says(hardness, same_image):
    count, ids = 4000, IDS if same_image else None
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.jit(jax.vmap(lambda key: draw_negatives(key, QUERIES, CANDIDATES, hardness, ids=ids)))
    drawn = np.stack([np.bincount(row, minlength=BATCH) for row in np.asarray(draw(keys)).T])  # (B queries, B)

    weights = np.exp(hardness * QUERIES.astype(np.float64) @ CANDIDATES.T)
    weights[(IDS[:, None] == IDS) if same_image else np.eye(BATCH, dtype=bool)] = 0
    expected = weights / weights.sum(axis=1, keepdims=True)
    assert np.all(drawn[expected == 0] == 0)
    deviation = np.sqrt(expected * (1 - expected) / count)
    assert np.all(np.abs(drawn / count - expected) <= 5 * deviation)
    assert np.abs(np.corrcoef(np.asarray(draw(keys)).T[:2]))[0, 1] < 0.1, "queries share their draws"


def chosen(selection, devices, scale=1.0, key=KEY):
    """What the selection names in a batch of the queries as images and the candidates as texts."""
    mesh = make_mesh(devices)
    arrays = put_batch({"image/out": 3 * QUERIES, "text/out": 2 * CANDIDATES, "id": IDS}, mesh)
    state = {"terms/itc": {"logit_scale": {"out": jnp.float32(np.log(scale))}}} if selection.reads else {}
    run = jax.jit(lambda state, arrays: run_selection(selection, mesh, state, arrays, key=key))
    return jax.device_get(run(state, arrays))


def test_they_are_the_draws_of_the_cosines_whatever_the_devices():
    for options in ({"hardness": 2.5}, {"same_image": "masked"}):
        one, eight = (chosen(hard_negatives(**options), devices, scale=2.5) for devices in (1, 8))
        first, second = jax.random.split(KEY)
        ids = IDS if "same_image" in options else None
        np.testing.assert_array_equal(one["hard_text"], draw_negatives(first, QUERIES, CANDIDATES, 2.5, ids=ids))
        np.testing.assert_array_equal(one["hard_image"], draw_negatives(second, CANDIDATES, QUERIES, 2.5, ids=ids))
        jax.tree.map(np.testing.assert_array_equal, one, eight)


def test_the_temperature_is_that_which_contrast_has_learned():
    """At 1000 the draw is the nearest other one, at 0 it is uniform; a number in the config takes its place."""
    cosines = np.where(np.eye(BATCH, dtype=bool), -2, QUERIES @ CANDIDATES.T)
    learned = hard_negatives()
    assert learned.reads == ("terms/itc",) and hard_negatives(hardness=1.0).reads == ()
    np.testing.assert_array_equal(chosen(learned, 1, scale=1000.0)["hard_text"], cosines.argmax(axis=1))
    draws = [chosen(learned, 1, scale=1e-6, key=jax.random.key(i))["hard_text"] for i in range(12)]
    assert all(len(set(column)) > 2 for column in np.stack(draws).T)
    assert hard_negatives(scale_of="other", level="fc1").needs == ("image/fc1", "text/fc1", "id")


def test_no_gradient_comes_through_the_choice():
    """A step of matching alone moves the temperature of contrast by nothing: the choice is a constant."""

    def init(key, specs):
        return {side: jax.random.normal(k, (WIDTH, WIDTH)) for side, k in zip(("image", "text"), jax.random.split(key))}

    def run(params, arrays, key, train):
        return {f"{side}/out": arrays[side] @ params["net"][side] for side in ("image", "text")}

    encode = Pass("net", ("net",), ("image", "text"), ("image/out", "text/out"), run)
    terms = {"itc": itc(levels=("out",)), "itm": itm(levels=("out",), fusion="gelu", width=4)}
    recipe = make_recipe(
        {"net": Network(init, None)}, (encode,), terms, {"itc": lambda p: 0.0, "itm": lambda p: 1.0},
        batch=("image", "text", "id"), selections=(hard_negatives(),),
    )  # fmt: skip
    mesh, tx = make_mesh(2), optax.sgd(1.0)
    batch = {"image": QUERIES, "text": CANDIDATES, "id": IDS}
    state = init_state(recipe, tx, mesh, batch, seed=0)
    before = jax.device_get(state.params)
    state, metrics = make_train_step(recipe, tx, mesh, total_steps=1)(state, {}, put_batch(batch, mesh))
    after = jax.device_get(state.params)
    assert after["terms"]["itc"] == before["terms"]["itc"]
    assert np.any(after["net"]["image"] != before["net"]["image"]) and np.isfinite(metrics["loss"])

    # The same loss as with the rows that the selection draws with its own key.
    key = key_of(jax.random.fold_in(state.rng, 0), "hard_negatives")
    out = {f"{side}/out": batch[side] @ before["net"][side] for side in ("image", "text")}
    image, text = (normalise(x) for x in out.values())
    scale = np.exp(before["terms"]["itc"]["logit_scale"]["out"])
    first, second = jax.random.split(key)
    texts, images = draw_negatives(first, image, text, scale), draw_negatives(second, text, image, scale)
    out |= {"text/out@hard_text": out["text/out"][np.asarray(texts)],
            "image/out@hard_image": out["image/out"][np.asarray(images)]}  # fmt: skip
    expected, _ = terms["itm"].value(before["terms"]["itm"], (), out, ALONE)
    np.testing.assert_allclose(metrics["itm/loss"], expected, rtol=1e-5)


def test_a_level_without_a_scale_is_refused_while_tracing():
    mesh, selection = make_mesh(1), hard_negatives(level="fc1")
    arrays = put_batch({"image/fc1": QUERIES, "text/fc1": CANDIDATES, "id": IDS}, mesh)
    run = jax.jit(lambda state, arrays: run_selection(selection, mesh, state, arrays, key=KEY))
    for scales, known in (({"logit_scale": {"out": jnp.float32(0)}}, "out"), ({}, "no scale")):
        with pytest.raises(UserError, match=f"'hard_negatives' .* 'itc' at the level 'fc1', but .* has {known}:"):
            run({"terms/itc": scales}, arrays)
