"""Where a teacher's class logits come from, and what is said where they do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smke_jax.errors import UserError
from smke_jax.forms import form_of
from smke_jax.models.resnet import ResNet
from smke_jax.models.teachers import Beit, stand_in_head
from smke_jax.parts import part
from smke_jax.passes.features import features
from smke_jax.training.build import build_experiment, resolve
from smke_jax.training.step import abstract_state

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def experiment(term="kl", model=None, head=32, **teacher):
    """Of a student with `head` channels, a random teacher with these fields and one term."""
    form = form_of("smoke")
    c = form.run()
    c.task, c.networks.student = form.pairs(), form.student(head=head)
    c.networks.teacher = form.teacher()
    c.networks.teacher.update(teacher)
    c.networks.teacher.model.update(model or {})
    c.terms[term] = part(term)
    return build_experiment(resolve(c), None)


def init(found):
    """The state's shapes: what a term says of widths that do not fit, it says here."""
    return abstract_state(found.recipe, optax.sgd(0.1), found.mesh, found.batch)


def test_a_resnets_feature_is_its_logits():
    model = ResNet(width=7, stem_width=4, depths=(1, 1))
    run = features(model, "teacher")
    assert set(run.provides) == {"target/cls", "target/feature", "target/logits"}
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    reps = jax.jit(lambda params: run.run({"teacher": params}, {"image": IMAGES}, None, False))(params)
    assert reps["target/logits"].shape == (3, 7) and reps["target/logits"].dtype == jnp.float32
    np.testing.assert_array_equal(reps["target/logits"], reps["target/cls"])


def test_a_finetuned_beit_gives_them_too():
    assert "target/logits" in features(Beit(32, 16, 32, 1, 2, 48, num_classes=9), "teacher").provides
    found = experiment(model={"num_classes": 9}, head=9)
    assert found.shapes.arrays["target/logits"].shape == (16, 9)


def test_without_a_classifier_there_are_none():
    run = features(Beit(32, 16, 32, 1, 2, 48), "teacher")
    assert "target/cls" in run.provides and "target/logits" not in run.provides
    with pytest.raises(UserError, match="the term 'kl' needs target/logits, which nothing here makes"):
        experiment()


def test_the_stand_in_is_the_same_every_time_and_scales_with_the_temperature():
    assert experiment(stand_in_classes=256, head=256).shapes.arrays["target/logits"].shape == (16, 256)
    cls = np.random.default_rng(1).normal(size=(5, 12)).astype(np.float32)
    logits = np.asarray(stand_in_head(64, 0.1)(cls))
    np.testing.assert_allclose(logits, jax.jit(stand_in_head(64, 0.1))(cls), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stand_in_head(64, 0.2)(3 * cls), logits / 2, rtol=1e-5, atol=1e-6)
    assert np.abs(logits).max() <= 10 and np.std(logits, axis=0).min() > 0.5
    # Cosines with as many directions as there are dimensions and more tell the feature itself.
    directions = np.array(jax.random.normal(jax.random.key(0), (12, 64)))
    directions /= np.linalg.norm(directions, axis=0)
    found = np.linalg.lstsq(directions.T, 0.1 * logits.T, rcond=None)[0].T
    np.testing.assert_allclose(found, cls / np.linalg.norm(cls, axis=1, keepdims=True), atol=1e-5)


def test_a_stand_in_for_a_classifier_that_is_there_is_refused():
    with pytest.raises(UserError, match="config.networks.teacher: .*a classifier of its own: set stand_in_classes=0"):
        experiment(model={"num_classes": 9}, stand_in_classes=256)


@pytest.mark.parametrize(("term", "target", "width"), [
    ("kl", "target/logits", 256), ("regress", "target/cls", 32), ("target_itc", "target/cls", 32),
])  # fmt: skip
def test_a_head_of_another_width_says_what_to_set(term, target, width):
    with pytest.raises(
        UserError, match=f"config.terms.{term}: image/head has 10 channels and {target} {width}: .*head={width}"
    ):
        init(experiment(term, stand_in_classes=256, head=10))
