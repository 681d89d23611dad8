"""Where a teacher's class logits come from, and what is said where they do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smke_jax.passes.frozen import teacher_pass

from smke_jax.config import base, smoke
from smke_jax.errors import UserError
from smke_jax.models.resnet import ResNet
from smke_jax.models.teachers import Beit, stand_in_head
from smke_jax.training.recipe import build_recipe, init_params, representation_shapes

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
BATCH = {
    "image": jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.uint8),
    **dict.fromkeys(("text", "text_mask"), jax.ShapeDtypeStruct((4, 6), jnp.int32)),
    "id": jax.ShapeDtypeStruct((4,), jnp.int32),
}


def config(**teacher):
    c = base()
    c.terms.kl = {}
    c = smoke(c)
    c.teacher.update(teacher)
    return c


def targets(c):
    reps = representation_shapes(build_recipe(c, vocab_size=20), BATCH)
    return {name.split("/")[1]: x.shape for name, x in reps.items() if name.startswith("target/")}


def check(c):
    recipe = build_recipe(c, vocab_size=20)
    jax.eval_shape(lambda: init_params(recipe, jax.random.key(0), BATCH))


def test_a_resnets_feature_is_its_logits():
    model = ResNet(width=7, stem_width=4, depths=(1, 1))
    run = teacher_pass(model)
    assert set(run.provides) == {"target/cls", "target/logits"}
    params = run.init(jax.random.key(0), {"image": IMAGES})
    reps = run.run(params, {"image": IMAGES}, None, False)
    assert reps["target/logits"].shape == (3, 7) and reps["target/logits"].dtype == jnp.float32
    np.testing.assert_array_equal(reps["target/logits"], reps["target/cls"])


def test_a_finetuned_beit_gives_them_too():
    assert "target/logits" in teacher_pass(Beit(32, 16, 32, 1, 2, 48, num_classes=9)).provides
    assert targets(config(num_classes=9, stand_in_classes=0)) == {"logits": (4, 9)}


def test_without_a_classifier_there_are_none():
    run = teacher_pass(Beit(32, 16, 32, 1, 2, 48))
    assert "target/cls" in run.provides and "target/logits" not in run.provides
    with pytest.raises(UserError, match="config.terms.kl needs target/logits, which none of the passes"):
        build_recipe(config(stand_in_classes=0), vocab_size=20)


def test_the_stand_in_is_the_same_every_time_and_scales_with_the_temperature():
    assert targets(config()) == {"logits": (4, 256)}
    cls = np.random.default_rng(1).normal(size=(5, 12)).astype(np.float32)
    logits = np.asarray(stand_in_head(64, 0.1)(cls))
    np.testing.assert_array_equal(logits, jax.jit(stand_in_head(64, 0.1))(cls))
    np.testing.assert_allclose(stand_in_head(64, 0.2)(3 * cls), logits / 2, rtol=1e-5, atol=1e-6)
    assert np.abs(logits).max() <= 10 and np.std(logits, axis=0).min() > 0.5
    # Cosines with as many directions as there are dimensions and more tell the feature itself.
    directions = np.array(jax.random.normal(jax.random.key(0), (12, 64)))
    directions /= np.linalg.norm(directions, axis=0)
    found = np.linalg.lstsq(directions.T, 0.1 * logits.T, rcond=None)[0].T
    np.testing.assert_allclose(found, cls / np.linalg.norm(cls, axis=1, keepdims=True), atol=1e-5)


def test_a_stand_in_for_a_classifier_that_is_there_is_refused():
    with pytest.raises(UserError, match="has a classifier of its own: set config.teacher.stand_in_classes=0"):
        build_recipe(config(num_classes=9), vocab_size=20)


@pytest.mark.parametrize(("term", "target", "width"), [
    ("kl", "target/logits", 256), ("regress", "target/cls", 32), ("target_itc", "target/cls", 32),
])  # fmt: skip
def test_a_head_of_another_width_says_what_to_set(term, target, width):
    c = config()
    del c.terms.kl
    c.terms[term] = {}
    c.student.head_dim = 10
    with pytest.raises(
        UserError, match=f"config.terms.{term}: image/head has 10 channels and {target} {width}: .*head_dim={width}"
    ):
        check(c)
    c.student.head_dim = width
    check(c)
