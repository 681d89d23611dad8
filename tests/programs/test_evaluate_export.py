"""A run read back: figures without its teacher; its encoder as another run's teacher and tower; the whole student."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from smke_jax.__main__ import main
from smke_jax.convert.params_file import load_params, read_description
from smke_jax.data.tokenizer import load_tokenizer
from smke_jax.evaluation.ranks import read_ranks
from smke_jax.models.student import build_student
from smke_jax.models.teachers import build_teacher
from smke_jax.training.experiment import restore_run
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.record import read_config

pytestmark = pytest.mark.slow  # two runs, compiled once for all of them


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory) -> Path:
    """Two steps of self-supervised training of a Data2Vec2 encoder, saved after each."""
    c = tiny.tiny_config()
    c.passes = ("views",)
    c.data.update(views="two_views", unit="images")
    c.teacher.update(type="data2vec2", norm_order="pre", checkpoint="", depth=2)
    c.projector = (16, 16)
    del c.terms.itc, c.terms.target_itc
    c.terms.vicreg = {"weight": 1.0}
    c.total_steps, c.checkpoint.every, c.eval.split = 2, 1, ""
    workdir = tmp_path_factory.mktemp("teacher")
    assert train_and_evaluate(c, workdir).step == 2
    return workdir


@pytest.fixture(scope="module")
def teacher_file(teacher_run) -> Path:
    path = teacher_run / "export"
    assert main(["export", f"--workdir={teacher_run}", f"--out={path}"]) == 0
    return path


@pytest.fixture(scope="module")
def student_run(teacher_file, tmp_path_factory):
    """(workdir, outcome) of a student whose teacher, and first image tower, the exported encoder is."""
    c = tiny.tiny_config()
    c.teacher.checkpoint = c.student.image.init = str(teacher_file)
    c.student.image.norm_order = "pre"
    c.optimizer.lr_rules = (("student/image_encoder", 0.0),)  # so that the tower can be found again
    c.total_steps, c.eval.every = 2, 1
    workdir = tmp_path_factory.mktemp("student")
    return workdir, train_and_evaluate(c, workdir)


@pytest.fixture
def run(student_run, tmp_path) -> Path:
    """A copy of the student's run, whose teacher's file is gone."""
    copy = Path(shutil.copytree(student_run[0], tmp_path / "run"))
    config = json.loads((copy / "config.json").read_text())
    config["teacher"]["checkpoint"] = config["student"]["image"]["init"] = "/gone"
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def error_of(capsys, *argv) -> str:
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and not [line for line in lines if "Traceback" in line]
    return lines[-1]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_teacher_is_exported_without_its_projector(teacher_run, teacher_file):
    trained = restore_run(teacher_run)
    assert_same(load_params(teacher_file), trained.params["views"]["encoder"])
    assert any(key.startswith("projector") for key in trained.params["views"])
    description = read_description(teacher_file)
    model = build_teacher(description["model"])
    assert (model.depth, model.norm_order, model.width) == (2, "pre", 32) and "checkpoint" not in description["model"]
    features = model.apply({"params": load_params(teacher_file)}, np.zeros((1, 32, 32, 3), np.float32))
    assert features.shape == (1, 32) and np.isfinite(features).all()
    source = description["source"]
    assert source["steps"] == 2 and source["data"] == "tiny-train" and source["config"]["config.projector"] == [16, 16]


def test_an_earlier_step_is_another_file(teacher_run, teacher_file, tmp_path, capsys):
    path = tmp_path / "first"
    assert main(["export", f"--workdir={teacher_run}", f"--out={path}", "--step=1"]) == 0
    assert read_description(path)["source"]["steps"] == 1
    a, b = jax.tree.leaves(load_params(path)), jax.tree.leaves(load_params(teacher_file))
    assert any(np.any(x != y) for x, y in zip(a, b, strict=True))
    message = error_of(capsys, "export", f"--workdir={teacher_run}", f"--out={tmp_path}/x", "--step=7")
    assert "no checkpoint of step 7" in message


@pytest.mark.parametrize("format", ["hf", "thesis", "onnx"])
def test_an_encoder_alone_goes_out_for_jax_only(teacher_run, tmp_path, capsys, format):
    message = error_of(capsys, "export", f"--workdir={teacher_run}", f"--out={tmp_path}/x", f"--format={format}")
    assert "trained an encoder alone" in message and message.endswith("use flax") and not list(tmp_path.iterdir())


def test_the_exported_teacher_teaches_and_starts_a_tower(student_run, teacher_file):
    workdir, outcome = student_run
    assert outcome.step == 2
    config = read_config(workdir)
    assert (config.teacher.type, config.teacher.norm_order, config.teacher.depth) == ("data2vec2", "pre", 2)
    exported, tower = load_params(teacher_file), outcome.params["student"]["image_encoder"]
    assert set(exported) - set(tower) == {"block_1"}  # the student's tower is one block deep
    assert_same(tower, {key: exported[key] for key in tower})


def test_a_student_is_exported_whole(student_run, run, tmp_path, capsys):
    path = tmp_path / "student"
    assert main(["export", f"--workdir={run}", f"--out={path}"]) == 0
    assert_same(load_params(path), student_run[1].params["student"])
    model = read_description(path)["model"]
    assert model["type"] == "student" and model["target_dim"] == 32
    assert load_tokenizer(path / "tokenizer", model["vocab_size"]).digest == load_tokenizer(run / "tokenizer").digest
    config = read_config(run).student
    config.update({k: v for k, v in model.items() if k in config})
    built = build_student(config, vocab_size=model["vocab_size"], target_dim=model["target_dim"])
    outputs = built.apply(
        {"params": load_params(path)}, np.zeros((1, 32, 32, 3)), np.ones((1, 4), int), np.ones((1, 4), int)
    )
    assert outputs[0]["head"].shape == (1, 32)
    # Never overwritten.
    assert f"{path} is already there" in error_of(capsys, "export", f"--workdir={run}", f"--out={path}")


def test_evaluating_needs_neither_teacher_nor_training_data(student_run, run, tmp_path, capsys):
    before = json.loads((run / "evals/2/retrieval.json").read_text())
    ranks = read_ranks(run / "evals/2/retrieval.npz")
    (run / "evals/2/retrieval.npz").unlink()
    out = tmp_path / "figures/out.json"
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={run}", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("step 2\nprotocol: tiny dev") and "6 images, 12 captions" in printed
    written = json.loads(out.read_text())
    assert written == json.loads((run / "evals/2/retrieval.json").read_text())
    assert written["n_images"] == 6 and written["image_to_text"] == before["image_to_text"]
    assert written["text_to_image"] == before["text_to_image"]
    recalls = [written[direction][key] for direction in ("image_to_text", "text_to_image")
               for key in ("r1", "r5", "r10")]  # fmt: skip
    for found in (ranks, read_ranks(run / "evals/2/retrieval.npz")):
        assert found.recalls().tolist() == recalls and len(found.caption_image) == 12
    assert [path.name for path in out.parent.iterdir()] == ["out.json"]


def test_other_splits_levels_and_steps_get_files_of_their_own(run, capsys):
    own = (run / "evals/2/retrieval.json").read_text()
    assert main(["evaluate", f"--workdir={run}", "--split=train", "--level=fc1"]) == 0
    figures = json.loads((run / "evals/2/retrieval-train-fc1.json").read_text())
    assert len(read_ranks(run / "evals/2/retrieval-train-fc1.npz").image_to_text) == 16
    assert figures["n_images"] == 16 and "'fc1'" in figures["protocol"]
    assert (run / "evals/2/retrieval.json").read_text() == own
    for step in ("1", "best"):
        capsys.readouterr()
        assert main(["evaluate", f"--workdir={run}", f"--step={step}"]) == 0
        assert capsys.readouterr().out.startswith("step 1\n" if step == "1" else "step ")


def test_runs_that_cannot_be_evaluated(teacher_run, run, tmp_path, capsys):
    assert f"no run at {tmp_path / 'none'}" in error_of(capsys, "evaluate", f"--workdir={tmp_path / 'none'}")
    assert "trained an encoder on photos" in error_of(capsys, "evaluate", f"--workdir={teacher_run}")
    assert "no split 'test'" in error_of(capsys, "evaluate", f"--workdir={run}", "--split=test")
    assert "no prepared dataset at /none" in error_of(capsys, "evaluate", f"--workdir={run}", "--data=/none")
    assert "steps there are: 1, 2" in error_of(capsys, "evaluate", f"--workdir={run}", "--step=9")
    assert f"cannot write {tmp_path}" in error_of(capsys, "evaluate", f"--workdir={run}", f"--out={tmp_path}")
    (run / "config.json").write_text("{")
    assert f"{run / 'config.json'} is damaged" in error_of(capsys, "evaluate", f"--workdir={run}")
    shutil.rmtree(run / "checkpoints")
    (run / "config.json").write_text((teacher_run / "config.json").read_text())
    assert "no checkpoint in" in error_of(capsys, "export", f"--workdir={run}", f"--out={tmp_path}/x")
