"""S-SMKE on codes takes them from the run that learned them, with the teacher that they were learned with."""

from pathlib import Path

import jax
import numpy as np
import pytest
from smke_jax.training.experiment import batch_shapes, build_experiment, open_training_data, resolve

from smke_jax.convert.params_file import save_params
from smke_jax.data import datasets
from smke_jax.data.scenes import make_scenes
from smke_jax.errors import UserError
from smke_jax.models.teachers import build_teacher
from smke_jax.parallel.mesh import put_batch
from smke_jax.programs.train import load_config
from smke_jax.training.frozen import load_frozen, restore_autoencoder
from smke_jax.training.loop import train_and_evaluate

pytestmark = pytest.mark.slow  # a run of the autoencoder, compiled once for all of them
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SCENES = make_scenes(64, 8)


def config(name):
    c = load_config(f"{CONFIGS / name}.py:smoke")
    c.num_devices = 2
    return c


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(datasets, "scenes", lambda: SCENES)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A file of random weights."""
    path, described = tmp_path_factory.mktemp("teacher") / "teacher.safetensors", config("image_vq").teacher
    params = build_teacher(described).init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
    save_params(path, params, {"model": {k: v for k, v in described.items() if k != "checkpoint"}})
    return str(path)


@pytest.fixture(scope="module")
def codes_run(tmp_path_factory, teacher):
    c = config("image_vq")
    c.teacher.checkpoint = teacher
    workdir = tmp_path_factory.mktemp("image_vq")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "scenes", lambda: SCENES)
        assert train_and_evaluate(c, workdir).step == 2
    return workdir


def opened(teacher, run, workdir, **fields):
    """(experiment, shapes of its batch) of S-SMKE on the codes of `run`."""
    c = config("s_smke_vq")
    c.teacher.checkpoint, c.quantizer.run = teacher, str(run)
    c.quantizer.update(fields)
    c = resolve(c)
    source, views = open_training_data(c)
    return build_experiment(c, workdir, source), batch_shapes(c, views)


def test_its_targets_are_the_codes_of_the_run(teacher, codes_run, tmp_path):
    experiment, shapes = opened(teacher, codes_run, tmp_path)
    frozen, identity = load_frozen(experiment, shapes)
    found, learner = restore_autoencoder(codes_run)
    slots, params = jax.device_get((found.train["slots"]["image_vq"], found.params["autoencoder"]))
    np.testing.assert_array_equal(frozen["quantizer"]["codes"], slots["codes"])
    assert len(identity["quantizer weights"]) == 64 and slots["started"]

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    batch = put_batch({"image": images, "id": np.arange(16, dtype=np.int32)}, experiment.mesh)
    passes = {p.name: p for p in experiment.recipe.passes}
    target = passes["teacher"].run(frozen["teacher"], batch, jax.random.key(0), False)
    code = passes["quantizer"].run(frozen["quantizer"], batch | target, jax.random.key(0), False)["target/code"]
    (autoencoder,) = (p for p in learner.recipe.passes if p.grad)
    made = autoencoder.run({**params, "image_vq": slots}, batch | target, jax.random.key(0), True)
    np.testing.assert_array_equal(code, np.argmax(made["code/similarity"], axis=1))


def test_it_trains_on_them(teacher, codes_run, tmp_path):
    c = config("s_smke_vq")
    c.teacher.checkpoint, c.quantizer.run = teacher, str(codes_run)
    outcome = train_and_evaluate(c, tmp_path)
    assert outcome.step == 2 and outcome.params["student"]["head"]["bias"].shape == (24,)


def refused(*args, **fields):
    with pytest.raises(UserError) as error:
        load_frozen(*opened(*args, **fields))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_go_together_is_refused(teacher, codes_run, tmp_path):
    assert "another teacher than config.teacher.checkpoint random" in refused("random", codes_run, tmp_path / "a")
    message = refused(teacher, codes_run, tmp_path / "b", code_dim=5)
    assert f"config.quantizer.code_dim is 5 and was 4 in {codes_run}: set it so" in message
    c = config("s_smke_vq")
    c.teacher.checkpoint, c.quantizer.run, c.teacher.final_norm = teacher, str(codes_run), False
    c = resolve(c)
    source, views = open_training_data(c)
    with pytest.raises(UserError, match="config.teacher.final_norm is False and was True where the codes of"):
        load_frozen(build_experiment(c, tmp_path / "d", source), batch_shapes(c, views))
    assert "no run at nowhere" in refused(teacher, "nowhere", tmp_path / "c")
    c = config("s_smke_vq").copy_and_resolve_references()  # where one follows the other
    c.student.head_dim = 7
    with pytest.raises(UserError, match="config.student.head_dim is 7 where config.quantizer.num_codes is 24"):
        resolve(c)
    c = config("s_smke_vq")
    c.quantizer.run = ""
    with pytest.raises(UserError, match="config.quantizer.run is empty: give the run directory of configs/image_vq.py"):
        resolve(c)
