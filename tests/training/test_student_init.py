"""A student that starts from another run's export: all of it with its temperature and vocabulary, or a refusal."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict
from smke_jax.training.start import describe_origins, load_parts, read_parts

from smke_jax.__main__ import main
from smke_jax.convert.params_file import PARAMS, load_params, read_description, save_params
from smke_jax.errors import UserError
from smke_jax.training.loop import train_and_evaluate


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """What `smke export` writes of the tiny recipe after two steps."""
    directory = tmp_path_factory.mktemp("first")
    config = tiny.tiny_config()
    config.total_steps = 2
    config.eval.every = config.checkpoint.every = 0
    train_and_evaluate(config, directory / "run")
    assert main(["export", f"--workdir={directory / 'run'}", f"--out={directory / 'export'}"]) == 0
    return directory / "export"


def finetuning(export):
    """Contrast alone, on the last level alone."""
    config = tiny.tiny_config()
    config.passes, config.teacher.checkpoint = ("student",), ""
    del config.terms.target_itc
    config.terms.itc.levels = ("out",)
    config.student.init = str(export)
    return config


def rebuilt(export, directory: Path, **changes) -> str:
    """The same parameters under another description."""
    description = read_description(export)
    save_params(directory / PARAMS, load_params(export), {**description, "model": {**description["model"], **changes}})
    return str(directory)


def blank(export, scales=1):
    zeros = jax.tree.map(lambda x: jax.numpy.zeros(x.shape), load_params(export))
    return {"student": zeros, "terms": {"itc": {"logit_scale": jax.numpy.zeros(scales)}}}


def test_a_head_of_another_width_is_refused_with_the_remedy(export):
    wide = blank(export)
    wide["student"]["head"]["kernel"] = jax.numpy.zeros((32, 50))
    with pytest.raises(UserError, match="has 32 channels, not 50: set config.student.head_dim=32"):
        read_parts(wide, finetuning(export).copy_and_resolve_references())


def test_everything_comes_from_the_file_and_the_last_scale_too(export):
    config, scales = finetuning(export), read_description(export)["model"]["logit_scales"]["itc"]
    assert len(scales) == 2 and scales[0] != scales[1]
    params = blank(export)
    parts = read_parts(params, config.copy_and_resolve_references())
    params = load_parts(params, parts)
    ours, theirs = flatten_dict(params["student"]), flatten_dict(load_params(export))
    assert set(ours) == set(theirs)
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key])
    np.testing.assert_array_equal(params["terms"]["itc"]["logit_scale"], np.float32(scales[-1:]))
    lines = describe_origins(params, parts)
    assert len(lines) == len(params["student"]) + 1 and not any("random" in line for line in lines)
    assert lines[-1] == f"terms/itc: 1 of 2 logit scales from {export}"


def test_more_levels_than_the_file_has_scales_for_start_anew(export):
    parts = read_parts(blank(export, scales=3), finetuning(export))
    assert [part.path for part in parts] == [("student",)]


def test_it_trains_from_there_and_the_run_says_so(export, tmp_path):
    config = finetuning(export)
    config.optimizer.learning_rate = 0.0
    config.total_steps = 2
    outcome = train_and_evaluate(config, tmp_path / "run")
    for key, value in flatten_dict(jax.device_get(outcome.params["student"])).items():
        np.testing.assert_array_equal(value, flatten_dict(load_params(export))[key])
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]
    first = json.loads((export.parent / "run" / "run.json").read_text())["identity"]
    assert len(identity["student weights"]) == 64
    assert identity["tokenizer"] == first["tokenizer"]


WRONG = {
    "depth": ({"image": {"depth": 3}}, "image.depth is 3 there and 1 here"),
    "shared": ({"shared": {"type": "mlp"}}, "shared.type is 'mlp' there and 'transformer' here"),
    "token types": ({"token_types_at": "before"}, "token_types_at is 'before' there and 'after' here"),
    "a teacher": ({"type": "data2vec2"}, "holds a model of type 'data2vec2': give what `smke export` wrote"),
}


@pytest.mark.parametrize("what", WRONG)
def test_another_student_is_refused(export, tmp_path, what):
    changes, message = WRONG[what]
    model = read_description(export)["model"]
    changes = {k: {**model[k], **v} if isinstance(v, dict) else v for k, v in changes.items()}
    config = finetuning(rebuilt(export, tmp_path / "other", **changes))
    with pytest.raises(UserError, match=message):
        read_parts(blank(export), config)


def test_the_size_of_images_and_the_dropout_may_change(export, tmp_path):
    model = read_description(export)["model"]
    changes = {
        "image": {**model["image"], "image_size": 64, "token_drop": 0.5},
        "text": {**model["text"], "dropout": 0.3},
    }
    assert read_parts(blank(export), finetuning(rebuilt(export, tmp_path / "other", **changes)))


def test_a_tower_of_its_own_beside_it_is_refused(export):
    config = finetuning(export)
    config.student.text.init = "weights/bert"
    with pytest.raises(UserError, match="starts the whole student: set config.student.text.init=random"):
        read_parts(blank(export), config)
