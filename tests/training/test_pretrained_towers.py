"""A student that starts from converted towers: the right weights in the right place, and the wrong ones refused."""

import json

import jax
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict
from smke_jax.training.experiment import resolve
from smke_jax.training.start import describe_origins, load_parts, read_parts

from smke_jax.convert.params_file import PARAMS, TOKENIZER, load_params, save_params
from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.errors import UserError
from smke_jax.models.build import param_shapes
from smke_jax.models.student import build_student
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.record import read_config

SIZES = {"width": 32, "num_heads": 2, "mlp_dim": 48}
IMAGE = {"type": "data2vec2", "image_size": 64, "patch_size": 16, "depth": 3, **SIZES}
TEXT = {"type": "bert", "vocab_size": 60, "depth": 2, "max_positions": 12, "pooler": True, **SIZES}
TEACHER = {"type": "beit", "image_size": 32, "patch_size": 16, "depth": 1, **SIZES}


def write(directory, model, seed):
    """Random parameters of `model` in `directory`, as `smke convert` leaves them."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), param_shapes(model))
    save_params(directory / PARAMS, params, {"model": model, "source": {"sha256": f"digest {seed}"}})
    return str(directory)


@pytest.fixture
def config(tmp_path):
    """The tiny recipe with all three networks from converted directories."""
    c = tiny.tiny_config()
    c.student.text.max_positions = 12
    c.student.image.init = write(tmp_path / "image", IMAGE, 0)
    c.student.text.init = write(tmp_path / "text", TEXT, 1)
    c.teacher.checkpoint = write(tmp_path / "teacher", TEACHER, 2)
    tokenizer = train_wordpiece([" ".join(tiny.WORDS)] * 2, 60)
    words = [f"filler{i}" for i in range(60 - tokenizer.vocab_size)]
    tokenizer.save(tmp_path / "text" / TOKENIZER)
    if words:  # the model's size exactly
        (tmp_path / "text" / TOKENIZER / "tokenizer.json").unlink()
        with (tmp_path / "text" / TOKENIZER / "vocab.txt").open("a") as file:
            file.writelines(f"{word}\n" for word in words)
    return c


def student_shapes(config):
    student = build_student(config.student, vocab_size=60, target_dim=32)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    tokens = jax.ShapeDtypeStruct((1, 8), np.int32)
    return jax.eval_shape(student.init, jax.random.key(0), images, tokens, tokens)["params"]


def test_the_first_layers_are_taken(config):
    shapes = student_shapes(config)
    towers = read_parts({"student": shapes}, config)
    zeros = jax.tree.map(
        lambda x: jax.numpy.zeros(x.shape, x.dtype), {"student": shapes, "terms": {"itc": {"logit_scale": np.ones(2)}}}
    )
    params = load_parts(zeros, towers)
    for name, path in (("image_encoder", config.student.image.init), ("text_encoder", config.student.text.init)):
        theirs = flatten_dict(load_params(path))
        ours = flatten_dict(params["student"][name])
        assert 0 < len(ours) < len(theirs), "layers and the pooler that the student has no room for are left"
        for key, value in ours.items():
            np.testing.assert_array_equal(value, theirs[key])
    assert not any(x.any() for x in jax.tree.leaves(params["student"]["shared"]))
    lines = describe_origins(params, towers)
    assert f"student/image_encoder: 21 tensors from {config.student.image.init} (data2vec2, layers 0-0 of 3)" in lines
    assert {"student/shared: random", "student/head: random", "terms/itc: random"} <= set(lines)


@pytest.mark.parametrize(("tower", "changes", "message"), [
    ("image", {"type": "beit"}, "holds a model of type 'beit'; this tower starts from data2vec2"),
    ("image", {"num_heads": 4}, "num_heads is 4 there and 2 here"),
    ("image", {"norm_order": "pre"}, "norm_order is 'pre' there and 'post' here"),
    ("image", {"mean": (0.5, 0.5, 0.5)}, "normalised otherwise"),
    ("text", {"norm_eps": 1e-6}, "norm_eps is 1e-06 there and 1e-12 here"),
    ("text", {"activation": "relu"}, "activation is 'relu' there and 'gelu' here"),
    ("text", {"depth": 0}, "has 0 layers: config.student.text.depth cannot be 1"),
    ("text", {"vocab_size": 61}, r"word_embedding is \(61, 32\) in the file and \(60, 32\) in the model"),
])  # fmt: skip
def test_another_architecture_is_refused(config, tmp_path, tower, changes, message):
    model = {**{"image": IMAGE, "text": TEXT}[tower], **changes}
    config.student[tower].init = write(tmp_path / "other", model, 3)
    with pytest.raises(UserError, match=message):
        read_parts({"student": student_shapes(config)}, config)


def test_a_vocabulary_has_to_come_from_somewhere(config, tmp_path):
    config.student.text.init = write(tmp_path / "bare", TEXT, 3)
    with pytest.raises(UserError, match="came without its vocabulary: give config.data.tokenizer"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_teacher_without_a_last_norm_says_what_to_set(config, tmp_path):
    config.teacher.checkpoint = write(tmp_path / "finetuned", {**TEACHER, "final_norm": False}, 3)
    with pytest.raises(UserError, match="set config.teacher.final_norm=False"):
        resolve(config)
    config.teacher.final_norm = False
    assert resolve(config).teacher.type == "beit"


def test_it_trains_and_the_run_says_where_it_came_from(config, tmp_path):
    config.total_steps = 2
    train_and_evaluate(config, tmp_path / "run")
    identity = json.loads((tmp_path / "run" / "run.json").read_text())["identity"]
    assert [identity[f"{x} source file"] for x in ("image_encoder", "text_encoder", "teacher")] == [
        "digest 0", "digest 1", "digest 2",
    ]  # fmt: skip
    assert (tmp_path / "run" / TOKENIZER / "vocab.txt").is_file()

    # A run of before some field existed opens, and continues, with that field at its default.
    for name, path in (("config.json", ("teacher", "mean")), ("run.json", ("config", "config.teacher.mean"))):
        text = json.loads((tmp_path / "run" / name).read_text())
        del text[path[0]][path[1]]
        (tmp_path / "run" / name).write_text(json.dumps(text))
    assert read_config(tmp_path / "run").teacher.mean == (0.485, 0.456, 0.406)
    assert train_and_evaluate(config, tmp_path / "run").step == 2
