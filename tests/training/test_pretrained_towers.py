"""A student that starts from converted towers: the right weights in the right place, and the wrong ones refused."""

import contextlib
import json
import logging

import jax
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict

from smke_jax.convert.params_file import PARAMS, TOKENIZER, load_params, save_params
from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.errors import UserError
from smke_jax.models.build import param_shapes
from smke_jax.networks.start import tower_start
from smke_jax.parts import part
from smke_jax.training import loop
from smke_jax.training.build import build_part
from smke_jax.training.loop import train_and_evaluate

SIZES = {"width": 32, "num_heads": 2, "mlp_dim": 48}
PIXELS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
IMAGE = {"type": "data2vec2", "image_size": 64, "patch_size": 16, "depth": 3, **SIZES, **PIXELS}
TEXT = {"type": "bert", "vocab_size": 60, "depth": 2, "max_positions": 12, "pooler": True, **SIZES}
TEACHER = {"type": "beit", "image_size": 32, "patch_size": 16, "depth": 1, **SIZES, **PIXELS}


def write(directory, model, seed):
    """Random parameters of `model` in `directory`, as `smke convert` leaves them."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), param_shapes(model))
    save_params(directory / PARAMS, params, {"model": model, "source": {"sha256": f"digest {seed}"}})
    return str(directory)


def tokenizer(folder, last="filler"):
    """A vocabulary of 60 words."""
    train_wordpiece([" ".join(tiny.WORDS)] * 2, 60).save(folder)
    (folder / "tokenizer.json").unlink()
    words = (folder / "vocab.txt").read_text().split()[:59]
    words += [f"filler{i}" for i in range(59 - len(words))] + [last]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))


@pytest.fixture
def config(tmp_path):
    """The tiny recipe with all three networks from converted directories."""
    c = tiny.tiny_config()
    c.num_devices = 1
    del c.evaluators.retrieval
    student = c.networks.student
    student.text.max_positions = 12
    student.image_start = write(tmp_path / "image", IMAGE, 0)
    student.text_start = write(tmp_path / "text", TEXT, 1)
    c.networks.teacher = part("frozen", start=write(tmp_path / "teacher", TEACHER, 2))
    tokenizer(tmp_path / "text" / TOKENIZER)
    c.task.tokenizer = str(tmp_path / "text" / TOKENIZER)
    return c


@pytest.fixture
def no_steps(monkeypatch):
    """Runs stop before their first step: what they start with can be seen, and nothing is compiled."""
    monkeypatch.setattr(loop, "stop_requests", lambda: contextlib.nullcontext(lambda step: True))


def test_the_first_layers_are_taken_and_the_run_says_where_they_came_from(config, tmp_path, caplog, no_steps):
    with caplog.at_level(logging.INFO, "smke_jax"):
        params = jax.device_get(train_and_evaluate(config, tmp_path / "run").params["student"])
    student = config.networks.student
    for name, path in (("image_encoder", student.image_start), ("text_encoder", student.text_start)):
        theirs, ours = flatten_dict(load_params(path)), flatten_dict(params[name])
        assert 0 < len(ours) < len(theirs), "layers and the pooler that the student has no room for are left"
        for key, value in ours.items():
            np.testing.assert_array_equal(value, theirs[key])
    lines = caplog.text.splitlines()
    said = f"student/image_encoder: 21 tensors from {student.image_start} (data2vec2, layers 0-0 of 3)"
    assert any(line.endswith(said) for line in lines)
    assert all(any(line.endswith(f"student/{name}: random") for line in lines) for name in ("shared", "head"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    names = ("student image_encoder", "student text_encoder", "teacher")
    assert [record["identity"][f"{name} source file"] for name in names] == ["digest 0", "digest 1", "digest 2"]
    assert all(len(record["identity"][f"{name} weights"]) == 64 for name in names)
    assert (tmp_path / "run" / TOKENIZER / "vocab.txt").is_file()


@pytest.mark.parametrize(("tower", "changes", "message"), [
    ("image", {"type": "beit"}, "holds a beit, and the image tower is a data2vec2: make it a part 'beit'"),
    ("image", {"type": "resnet"}, "holds a model of type 'resnet'; this tower starts from beit or data2vec2 or"),
    ("image", {"num_heads": 4}, "num_heads is 4 there and 2 here"),
    ("image", {"norm_order": "pre"}, "norm_order is 'pre' there and 'post' here"),
    ("text", {"norm_eps": 1e-6}, "norm_eps is 1e-06 there and 1e-12 here"),
    ("text", {"activation": "relu"}, "activation is 'relu' there and 'gelu' here"),
    ("text", {"depth": 0}, "has 0 layers: the depth of the text tower is 1"),
    ("text", {"vocab_size": 61}, "has 61 words and the tokenizer 60: set config.task.tokenizer to the folder"),
])  # fmt: skip
def test_another_architecture_is_refused(tmp_path, tower, changes, message):
    own = {"image": IMAGE, "text": TEXT}[tower]
    path = write(tmp_path / "other", own, 3)
    save_params(tmp_path / "other" / PARAMS, load_params(path), {"model": {**own, **changes}})
    student = tiny.tiny_config().networks.student
    student.text.max_positions = 12
    description = build_part("networks", "student", student, vocab_size=60).export({}, {})[1]
    shapes = param_shapes(description)[f"{tower}_encoder"]
    with pytest.raises(UserError, match=message):
        tower_start(tower, path, shapes, description[tower])


def test_the_vocabulary_has_to_be_that_of_the_weights(config, tmp_path, no_steps):
    tokenizer(tmp_path / "other", last="zebra")
    config.task.tokenizer = str(tmp_path / "other")
    with pytest.raises(UserError, match="config.networks.student starts from a file .* another tokenizer"):
        train_and_evaluate(config, tmp_path / "run")
    config.task.tokenizer = ""  # one that is trained on the captions
    with pytest.raises(UserError, match="another tokenizer"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


# ---- what a teacher's file says of itself


def test_a_teacher_without_a_last_norm_says_what_to_set(tmp_path):
    start = write(tmp_path / "finetuned", {**TEACHER, "final_norm": False}, 3)
    teacher = part("frozen", start=start)
    with pytest.raises(UserError, match="config.networks.teacher: .* has no norm .*: set final_norm=False"):
        build_part("networks", "teacher", teacher)
    teacher.final_norm = False
    assert build_part("networks", "teacher", teacher).sizes == {"teacher_image": 32}


def test_what_the_file_says_is_not_overridden_silently(tmp_path):
    """Asked for 64 px of a teacher of 32: refused by name, not trained at 32."""
    start = write(tmp_path / "teacher", TEACHER, 3)
    same = part("beit", **{k: v for k, v in TEACHER.items() if k != "type" and k not in PIXELS})
    assert build_part("networks", "teacher", part("frozen", start=start, model=same)).sizes == {"teacher_image": 32}
    other = part(
        "beit", **{k: v for k, v in TEACHER.items() if k not in ("type", "image_size", *PIXELS)}, image_size=64
    )
    with pytest.raises(UserError, match=r"config.networks.teacher: model.image_size is 64, and .* says 32"):
        build_part("networks", "teacher", part("frozen", start=start, model=other))
    # A part at its defaults says nothing of its own, so that another start can be given by a flag alone.
    assert build_part("networks", "teacher", part("frozen", start=start, model=part("resnet"))).trained is False
    with pytest.raises(UserError, match=r"model.width is set for a resnet, and .* holds a beit: leave it out"):
        build_part("networks", "teacher", part("frozen", start=start, model=part("resnet", width=7)))


def test_a_field_that_this_teacher_does_not_have_is_refused(tmp_path):
    """`final_norm` of a BEiT, on a teacher that is a Data2Vec2: it would do nothing."""
    start = write(tmp_path / "teacher", IMAGE, 3)
    with pytest.raises(UserError, match="final_norm: data2vec2 has no such field"):
        build_part("networks", "teacher", part("frozen", start=start, final_norm=False))


def test_what_is_no_teacher_is_refused(tmp_path):
    for start, message in (
        (write(tmp_path / "text", TEXT, 3), "holds a model of type 'bert', which is no teacher"),
        ("", "the teacher's start is empty"),
        ("weights/none", "no weights at weights/none: give what `smke convert` or `smke export` wrote"),
    ):
        with pytest.raises(UserError, match=f"config.networks.teacher: .*{message}"):
            build_part("networks", "teacher", part("frozen", start=start))
    with pytest.raises(UserError, match="a teacher of random weights needs a model"):
        build_part("networks", "teacher", part("frozen", start="random"))
