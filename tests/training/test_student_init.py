"""A student that starts from another run's export: all of it, its temperatures and vocabulary, or a refusal."""

import contextlib
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict

from smke_jax.convert.params_file import PARAMS, TOKENIZER, load_params, read_description, save_params
from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.errors import UserError
from smke_jax.models.build import param_shapes
from smke_jax.networks.start import student_start
from smke_jax.training import loop
from smke_jax.training.build import build_part
from smke_jax.training.loop import train_and_evaluate

SCALES = {"itc": {"fc1": 2.5, "out": 3.5}, "other": {"head": 1.0}}


def config(path):
    """The tiny student by contrast alone, on the last level alone."""
    c = tiny.tiny_config()
    del c.networks.teacher, c.terms.target_itc, c.evaluators.retrieval
    c.terms.itc.levels = ("out",)
    c.networks.student.start, c.task.tokenizer = str(path), f"{path}/{TOKENIZER}"
    c.num_devices = 1
    return c


def fields(c):
    """The description that the student of this config is exported with."""
    return build_part("networks", "student", c.networks.student, vocab_size=60).export({}, {})[1]


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    """What `smke export` writes of such a student, of random numbers."""
    directory = tmp_path_factory.mktemp("export")
    description = fields(config(directory))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), param_shapes(description))
    save_params(directory / PARAMS, params, {"model": {**description, "level": "out", "max_length": 8,
                                                       "logit_scales": SCALES}})  # fmt: skip
    tokenizer(directory / TOKENIZER)
    return directory


def tokenizer(folder, more=()):
    """A vocabulary of 60 words."""
    train_wordpiece([" ".join(tiny.WORDS)] * 2, 60).save(folder)
    (folder / "tokenizer.json").unlink()
    words = (folder / "vocab.txt").read_text().split()
    words = [*words[: 60 - len(more)], *more]
    words += [f"filler{i}" for i in range(60 - len(words))]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))


def rebuilt(export, directory: Path, **changes) -> str:
    """The same parameters under another description."""
    description = read_description(export)
    save_params(directory / PARAMS, load_params(export), {**description, "model": {**description["model"], **changes}})
    return str(directory)


def start(path, **changes):
    """What a student with these fields starts from."""
    description = fields(config(path)) | changes
    return student_start(str(path), param_shapes(description), description)


def test_everything_comes_from_the_file_with_the_temperatures_by_their_levels(export):
    begun = start(export)
    ours, theirs = flatten_dict(begun.params), flatten_dict(load_params(export))
    assert set(ours) == set(theirs)
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key])
    assert begun.terms == {name: {"logit_scale": levels} for name, levels in SCALES.items()}
    assert begun.origins == {"": f"{len(ours)} tensors from {export}"}


def test_a_run_begins_there_and_says_so(export, tmp_path, caplog, monkeypatch):
    """Of the two temperatures that the file has for 'itc', the term has one: that of its own level."""
    monkeypatch.setattr(loop, "stop_requests", lambda: contextlib.nullcontext(lambda step: True))  # before a step
    with caplog.at_level(logging.INFO, "smke_jax"):
        outcome = train_and_evaluate(config(export), tmp_path / "run")
    for key, value in flatten_dict(jax.device_get(outcome.params["student"])).items():
        np.testing.assert_array_equal(value, flatten_dict(load_params(export))[key])
    assert {k: float(x) for k, x in outcome.params["terms"]["itc"]["logit_scale"].items()} == {"out": 3.5}
    lines = caplog.text.splitlines()
    count = len(jax.tree.leaves(outcome.params["student"]))
    assert [line for line in lines if line.endswith(f"student: {count} tensors from {export}")]
    assert not [line for line in lines if "random" in line]
    lost = [line for line in lines if "is of no term here" in line]
    assert len(lost) == len(SCALES) - 1 and not [line for line in lost if "'itc'" in line]
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]
    assert len(identity["student weights"]) == 64 and len(identity["tokenizer"]) == 64


def test_another_vocabulary_of_the_same_size_is_refused(export, tmp_path):
    tokenizer(tmp_path / "other", more=("zebra",))
    c = config(export)
    c.task.tokenizer = str(tmp_path / "other")
    with pytest.raises(UserError, match="made with another tokenizer .*: set config.task.tokenizer to the one that"):
        train_and_evaluate(c, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_head_of_another_width_is_refused_with_the_remedy(export):
    with pytest.raises(UserError, match="the head of .* has 32 channels, not 50: set head=32"):
        start(export, target_dim=50)


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
    ours = fields(config(export))
    with pytest.raises(UserError, match=message):
        student_start(rebuilt(export, tmp_path / "other", **changes), param_shapes(ours), ours)


def test_the_size_of_images_and_the_dropout_may_change(export, tmp_path):
    model = read_description(export)["model"]
    changes = {
        "image": {**model["image"], "image_size": 64, "token_drop": 0.5},
        "text": {**model["text"], "dropout": 0.3},
    }
    ours = fields(config(export))
    assert student_start(rebuilt(export, tmp_path / "other", **changes), param_shapes(ours), ours).params


def test_a_tower_of_its_own_beside_it_is_refused(export, tmp_path):
    c = config(export)
    c.networks.student.text_start = "weights/bert"
    with pytest.raises(UserError, match="config.networks.student: .* the whole student: set text_start=random"):
        train_and_evaluate(c, tmp_path / "run")
