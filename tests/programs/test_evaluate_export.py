"""A run of two stages read back: figures without the files of weights; its encoder in the second stage; the student."""

import contextlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from made_up import jpeg, prepare, write
from test_command_line import write_flickr8k
from tiny_export import save_model

from smke_jax.__main__ import main
from smke_jax.convert.params_file import load_params, read_description
from smke_jax.data.tokenizer import load_tokenizer
from smke_jax.evaluators.ranks import read_ranks
from smke_jax.models.build import build_model
from smke_jax.reporting.run_file import read_run
from smke_jax.training import loop
from smke_jax.training.record import read_config
from smke_jax.training.restore import restore_run

pytestmark = pytest.mark.slow  # two runs, compiled once for all of them


@pytest.fixture(scope="module")
def teacher_run(staged) -> Path:
    """Two steps of self-supervised training of a Data2Vec2 encoder, saved after each; no evaluators."""
    return staged / "teacher"


@pytest.fixture(scope="module")
def student_run(staged) -> Path:
    """Two steps of a student whose teacher, and first image tower, the exported encoder is."""
    return staged / "student"


@pytest.fixture(scope="module")
def trained(student_run):
    return restore_run(student_run)


@pytest.fixture
def run(student_run, tmp_path) -> Path:
    """A copy of the student's run, whose files of weights are gone."""
    copy = Path(shutil.copytree(student_run, tmp_path / "run"))
    config = json.loads((copy / "config.json").read_text())
    config["networks"]["student"]["image_start"] = config["networks"]["teacher"]["start"] = "/gone"
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


def test_a_stage_is_exported_without_its_projector(teacher_run):
    params = restore_run(teacher_run).params["views"]
    path = teacher_run / "export"
    assert_same(load_params(path), params["encoder"])
    assert any(key.startswith("projector") for key in params)
    description = read_description(path)
    model = build_model(description["model"])
    assert (model.depth, model.width) == (2, 32)
    features = model.apply({"params": load_params(path)}, np.zeros((1, 32, 32, 3), np.float32))
    assert features.shape == (1, 32) and np.isfinite(features).all()
    source = description["source"]
    assert source["steps"] == 2 and source["identity"] == {"data": "tiny-train"}
    assert source["config"]["config.networks.views.projector"] == [16, 16]


def test_a_later_stage_begins_with_it(teacher_run, student_run, trained):
    path = str(teacher_run / "export")
    networks = read_config(student_run).networks
    assert (networks.teacher.start, networks.student.image_start) == (path, path)
    identity = read_run(student_run)["identity"]
    assert identity["teacher weights"] == identity["student image_encoder weights"]
    exported, tower = load_params(path), trained.params["student"]["image_encoder"]
    assert set(exported) - set(tower) == {"block_1"}  # the student's tower is one block deep
    same = {key: exported[key] for key in tower}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), dict(tower), same)  # two small steps away
    assert not (student_run / "export").exists()


def test_a_stage_that_was_stopped_goes_on_with_the_same_command(staged, tmp_path, monkeypatch, capsys):
    workdir = Path(shutil.copytree(staged, tmp_path / "runs"))
    student = workdir / "student"
    shutil.rmtree(student / "checkpoints/2")
    shutil.rmtree(workdir / "teacher/export")  # is written again, bit by bit: the student's record holds its digest
    command = ["train", f"--config={staged.parent / 'stages.py'}", f"--workdir={workdir}"]
    with monkeypatch.context() as patched:
        patched.setattr(loop, "stop_requests", lambda: contextlib.nullcontext(lambda step: True))
        assert main(command) == 0
    said = f"stage student, step 1: stopped and saved in {student}; the same command continues"
    assert capsys.readouterr().out.strip() == said
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"the run lies in {student}; next:",
        f"  smke evaluate --workdir={student}",
        f"  smke export --workdir={student} --out={student / 'export'}",
    ]
    steps = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2]


def test_an_earlier_step_is_another_file(teacher_run, tmp_path, capsys):
    path = tmp_path / "first"
    assert main(["export", f"--workdir={teacher_run}", f"--out={path}", "--step=1"]) == 0
    assert read_description(path)["source"]["steps"] == 1
    a, b = jax.tree.leaves(load_params(path)), jax.tree.leaves(load_params(teacher_run / "export"))
    assert any(np.any(x != y) for x, y in zip(a, b, strict=True))
    message = error_of(capsys, "export", f"--workdir={teacher_run}", f"--out={tmp_path}/x", "--step=7")
    assert "no checkpoint of step 7" in message
    message = error_of(capsys, "export", f"--workdir={teacher_run}", f"--out={tmp_path}/x", "--format=hf")
    assert "this run trained a model of type data2vec2, and --format=hf" in message and message.endswith("use flax")
    assert [file.name for file in tmp_path.iterdir()] == ["first"]


def test_a_student_is_exported_whole(student_run, trained, tmp_path, capsys):
    path = tmp_path / "student"
    assert main(["export", f"--workdir={student_run}", f"--out={path}"]) == 0
    assert_same(load_params(path), trained.params["student"])
    model = read_description(path)["model"]
    assert model["type"] == "student" and model["target_dim"] == 32 and model["level"] == "out"
    assert set(model["logit_scales"]["itc"]) == {"fc1", "out"} and set(model["logit_scales"]["target_itc"]) == {"head"}
    tokenizers = [load_tokenizer(folder / "tokenizer") for folder in (path, student_run)]
    assert tokenizers[0].digest == tokenizers[1].digest and tokenizers[0].vocab_size == model["vocab_size"]
    outputs = build_model(model).apply(
        {"params": load_params(path)}, np.zeros((1, 32, 32, 3)), np.ones((1, 4), int), np.ones((1, 4), int)
    )
    assert outputs[0]["head"].shape == (1, 32)
    # Never overwritten.
    assert f"{path} is already there" in error_of(capsys, "export", f"--workdir={student_run}", f"--out={path}")


def test_evaluating_needs_neither_weights_nor_training_data(run, tmp_path, capsys):
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


def test_what_departs_from_the_run_gets_files_of_its_own(run, capsys):
    own = (run / "evals/2/retrieval.json").read_text()
    flags = ["--split=train", "--config.evaluators.retrieval.level=fc1", "--step=1"]
    assert main(["evaluate", f"--workdir={run}", "--evaluator=retrieval", *flags]) == 0
    assert capsys.readouterr().out.startswith("step 1\n")
    figures = json.loads((run / "evals/1/retrieval-train-fc1.json").read_text())
    assert len(read_ranks(run / "evals/1/retrieval-train-fc1.npz").image_to_text) == 16
    assert figures["n_images"] == 16 and "'fc1'" in figures["protocol"]
    assert (run / "evals/2/retrieval.json").read_text() == own
    assert main(["evaluate", f"--workdir={run}", "--step=best"]) == 0
    assert capsys.readouterr().out.startswith("step ")


def test_another_folder_is_evaluated_with_the_settings_of_the_run(run, tmp_path, capsys):
    source = write_flickr8k(tmp_path / "source")
    assert main(["prepare", "flickr8k", f"--source={source}", f"--out={tmp_path / 'photos'}"]) == 0
    assert main(["evaluate", f"--workdir={run}", f"--data={tmp_path / 'photos'}", "--split=train"]) == 0
    figures = json.loads((run / "evals/2/retrieval-photos-train.json").read_text())
    assert (figures["n_images"], figures["n_captions"]) == (4, 8)
    assert figures["protocol"] == "flickr8k train, any-of-n, cosine of 'out', 32 px squashed, 8 tokens"
    shrunk = [f"--source={source}", f"--out={tmp_path / 'shrunk'}", "--max_side=33"]
    assert main(["prepare", "flickr8k", *shrunk]) == 0
    assert main(["evaluate", f"--workdir={run}", f"--data={tmp_path / 'shrunk'}", "--split=train"]) == 0
    figures = json.loads((run / "evals/2/retrieval-shrunk-train.json").read_text())
    assert "32 px squashed, photos stored at 33 px, 8 tokens" in figures["protocol"]


def test_runs_that_cannot_be_evaluated(teacher_run, run, tmp_path, capsys):
    fails = lambda *flags: error_of(capsys, "evaluate", f"--workdir={run}", *flags)  # noqa: E731
    assert f"no run at {tmp_path / 'none'}" in error_of(capsys, "evaluate", f"--workdir={tmp_path / 'none'}")
    assert f"{teacher_run} has no evaluators" in error_of(capsys, "evaluate", f"--workdir={teacher_run}")
    assert "no evaluator 'retrival' among retrieval: did you mean" in fails("--evaluator=retrival")
    assert "config.evaluators.retrieval.level is 'fc9': known are fc1, head, out" in fails("--level=fc9")
    assert "unknown config key config.evaluators.retrieval.splt" in fails("--config.evaluators.retrieval.splt=dev")
    assert "config.batch_size cannot be changed after training" in fails("--config.batch_size=4")
    assert "no split 'test'" in fails("--split=test")
    assert "no prepared dataset at /none" in fails("--data=/none")
    assert "steps there are: 1, 2" in fails("--step=9")
    assert f"cannot write {tmp_path}" in fails(f"--out={tmp_path}")
    (run / "config.json").write_text("{")
    assert f"{run / 'config.json'} is damaged" in fails()
    shutil.rmtree(run / "checkpoints")
    (run / "config.json").write_text((teacher_run / "config.json").read_text())
    assert "no checkpoint in" in error_of(capsys, "export", f"--workdir={run}", f"--out={tmp_path}/x")


@pytest.mark.parametrize("format", ["flax", "hf", "thesis"])
def test_an_export_is_evaluated_like_its_run(format, student_run, tmp_path, capsys):
    source = write_flickr8k(tmp_path / "source")
    photos, out = tmp_path / "photos", tmp_path / "export"
    assert main(["prepare", "flickr8k", f"--source={source}", f"--out={photos}"]) == 0
    assert main(["export", f"--workdir={student_run}", f"--format={format}", f"--out={out}"]) == 0
    found = {}
    run = shutil.copytree(student_run, tmp_path / "run")
    for name, folder in (("run", run), ("export", out)):
        figures = tmp_path / f"{name}.json"
        extra = ["--evaluator=retrieval"] if name == "run" else []
        command = ["evaluate", f"--workdir={folder}", f"--data={photos}", "--split=train", f"--out={figures}", *extra]
        assert main(command) == 0
        found[name] = json.loads(figures.read_text())
    assert {**found["export"], "protocol": ""} == {**found["run"], "protocol": ""}
    assert "flickr8k train" in found["export"]["protocol"]
    assert "names no data: give --data" in error_of(capsys, "evaluate", f"--workdir={out}")
    assert "is no run of `smke train`: leave --step out" in error_of(capsys, "evaluate", f"--workdir={out}", "--step=2")


def test_the_split_of_an_export_where_none_is_named(tmp_path, capsys):
    """test, or dev where there is no test; else the splits that there are."""
    (tmp_path / "model").mkdir()
    model, out = save_model(tmp_path / "model"), tmp_path / "out.json"
    found = {}
    for splits in (("test", "dev"), ("train", "dev"), ("train",)):
        folder, data = tmp_path / "-".join(splits), tmp_path / f"{len(found)}"
        rows = [json.dumps({"image_path": f"{i}.jpg", "text": f"dog {i}"}) for i in range(4)]
        write(folder, {f"{i}.jpg": jpeg(i) for i in range(4)} | {f"{name}.jsonl": "\n".join(rows) for name in splits})
        prepare("jsonl", folder, data)
        capsys.readouterr()
        status = main(["evaluate", f"--workdir={model}", f"--data={data}", f"--out={out}"])
        found[splits] = capsys.readouterr().err if status else json.loads(out.read_text())["protocol"]
    assert "jsonl test, any-of-n" in found["test", "dev"] and "jsonl dev, any-of-n" in found["train", "dev"]
    assert "has no split 'test': it has train" in found["train",]


def test_opening_a_run_says_nothing_of_read_only_folders(student_run, caplog):
    with caplog.at_level("WARNING"):
        restore_run(student_run)
    assert "read only" not in caplog.text
