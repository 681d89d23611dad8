"""Distilling one modality, whole: from the teacher's file to a student that other configs begin with."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny  # noqa: F401  (the source 'tiny')

from smke_jax.config_files import load_config
from smke_jax.convert.params_file import PARAMS, load_params, save_params
from smke_jax.data import datasets
from smke_jax.data.datasets import SceneSource
from smke_jax.data.scenes import make_scenes
from smke_jax.data.tokenizer import load_tokenizer, train_wordpiece
from smke_jax.errors import UserError
from smke_jax.models.build import build_model
from smke_jax.networks.frozen import frozen
from smke_jax.networks.layered import layered_image
from smke_jax.networks.text_classifier import text_classifier
from smke_jax.networks.text_tower import text_tower
from smke_jax.networks.two_towers import two_towers
from smke_jax.parts import base, part
from smke_jax.programs.evaluate import main as evaluate
from smke_jax.programs.prepare import main as prepare
from smke_jax.training.build import build_experiment
from smke_jax.training.export import export_run
from smke_jax.training.loop import train_and_evaluate

SIZES = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
IMAGE = {"type": "vit", "image_size": 32, "patch_size": 16, **SIZES, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
STEPS = 6
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def save(folder, model, *inputs):
    """A teacher whose layers all do something."""
    params = build_model(model).init(jax.random.key(1), *inputs)["params"]
    params = jax.tree.map(lambda x: np.asarray(x) * (5 if x.ndim == 2 else 1), params)
    folder.mkdir(exist_ok=True)
    save_params(folder / PARAMS, params, {"model": model, "source": {"layout": "x", "file": "x", "sha256": "1"}})
    return str(folder)


def config(modality, start, task, **fields):
    c = base()
    c.update(batch_size=8, total_steps=STEPS, num_devices=1, eval_batch_size=8)
    c.checkpoint.update(every=2, keep=5)
    c.log.update(every=1, report=False)
    c.optimizer.update(learning_rate=3e-3, reference_batch=0)
    mask = {"mask": "text_mask"} if modality == "text" else {}
    c.task = part(task, **fields)
    c.networks.teacher = part(f"layered_{modality}", start=start, makes="teacher", trained=False)
    c.networks.student = part(f"layered_{modality}", start=start, makes="student", depth=1)
    c.terms.layers = part("layer_means", **mask)
    c.evaluators.layers = part("layer_agreement", every=2, **mask)
    return c


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{modality: config} with files of teachers, and a folder of running text."""
    root = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(tiny.WORDS, rng.integers(3, 9))) for _ in range(80)]
    (root / "lines.txt").write_text("\n".join(lines))
    words = train_wordpiece(lines, 100)
    words.save(root / "bert" / "tokenizer")
    prepare([
        "text", f"{root}/lines.txt", f"--out={root}/text", f"--tokenizer={root}/bert/tokenizer", "--length=12",
        "--holdout=9",
    ])  # fmt: skip
    bert = {"type": "bert", "vocab_size": words.vocab_size, **SIZES, "max_positions": 12, "pooler": True}
    ids = np.ones((2, 3), np.int32)
    image = save(root / "vit", IMAGE, np.zeros((2, 32, 32, 3), np.float32))
    text = save(root / "bert", bert, ids, ids)
    running = {"task": "text", "data": (f"{root}/text",), "vocab_size": words.vocab_size, "max_length": 12}
    return {"image": config("image", image, task="images", source="tiny"), "text": config("text", text, **running)}


@pytest.fixture(scope="module", params=["image", "text"])
def run(request, made, tmp_path_factory):
    """(modality, its config, the folder of its run, what the run ended with)"""
    workdir = tmp_path_factory.mktemp("runs") / request.param
    return request.param, made[request.param], workdir, train_and_evaluate(made[request.param], workdir)


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def near(a, b, tolerance=2e-4):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), a, b)


def test_the_student_alone_learns_and_comes_nearer(run):
    modality, c, workdir, result = run
    assert set(result.params) == {"student", "terms"} and "block_1" not in result.params["student"]
    first = json.loads((workdir / "evals/2/layers.json").read_text())
    last = json.loads((workdir / f"evals/{STEPS}/layers.json").read_text())
    assert last["loss"] < first["loss"] and last["cosine"] > first["cosine"]
    assert last["rows"] == {"image": tiny.SIZES["dev"], "text": 9}[modality]


def test_it_begins_as_its_teachers_first_layers(run):
    _, c, workdir, result = run
    teacher, shapes = load_params(c.networks.teacher.start), result.params["student"]
    start = np.asarray(teacher["block_0"]["mlp"]["fc1"]["kernel"])
    moved = np.abs(np.asarray(shapes["block_0"]["mlp"]["fc1"]["kernel"]) - start).max()
    assert 0 < moved < 0.02 < np.abs(start).max(), "six steps of 3e-3 at most, with warm-up"


def test_a_run_goes_on_where_it_was(run, tmp_path):
    _, c, workdir, result = run
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / str(STEPS))
    other = train_and_evaluate(c, again)
    near(result.params, other.params, 0)
    assert losses(again) == losses(workdir)


def test_eight_devices_learn_the_same(run, tmp_path):
    _, c, workdir, result = run
    c = c.copy_and_resolve_references()
    c.num_devices = 8
    other = train_and_evaluate(c, tmp_path / "run")
    found, known = (
        json.loads((folder / f"evals/{STEPS}/layers.json").read_text()) for folder in (tmp_path / "run", workdir)
    )
    for name in ("rows", "tokens", "loss", "cosine", "explained"):
        assert found[name] == pytest.approx(known[name], rel=1e-4)
    np.testing.assert_allclose(list(losses(tmp_path / "run").values()), list(losses(workdir).values()), rtol=1e-4)
    near(result.params["student"], other.params["student"])


def test_another_split_or_folder_is_evaluated(run, made, tmp_path):
    modality, c, workdir, result = run
    again, name = tmp_path / "again", "layers-train"
    shutil.copytree(workdir, again)
    options = ["--split=train"]
    if modality == "text":
        name = "layers-moved-train"
        shutil.copytree(c.task.data[0], tmp_path / "moved")
        options.append(f"--data={tmp_path / 'moved'}")
    assert evaluate([f"--workdir={again}", *options]) == 0
    found = json.loads((again / f"evals/{STEPS}/{name}.json").read_text())
    last = json.loads((again / f"evals/{STEPS}/layers.json").read_text())
    assert found["rows"] > last["rows"] and found["loss"] != last["loss"]


def test_other_configs_begin_with_the_student(run, tmp_path):
    modality, c, workdir, result = run
    out = tmp_path / "student"
    written = export_run(workdir, out)
    assert written.network.description["depth"] == 1
    assert all(x.cosine > 0.9999 for x in written.likeness.values())
    assert ("Image" if modality == "image" else "Text") + " encoder" in (out / "README.md").read_text()
    vocabulary = 1
    if modality == "text":
        words = load_tokenizer(out / "tokenizer")
        the_pooler_came_along(c.networks.teacher.start, str(out), words.vocab_size)
        vocabulary, student = words.vocab_size, text_tower(vocab_size=words.vocab_size, start=str(out))
        assert student.start(shapes_of(student)).expects == {"tokenizer": words.digest}
    else:
        student = frozen(start=str(out))
    near(student.start(shapes_of(student)).params, result.params["student"], 0)

    towers = {
        "image": part("vit", **SIZES, image_size=32, patch_size=16),
        "text": part("bert", **SIZES, max_positions=12),
    }
    towers[modality].depth = 1
    both = two_towers(
        vocab_size=vocabulary, shared=part("transformer", num_heads=2, mlp_dim=8), head=8, **towers,
        **{f"{modality}_start": str(out)},
    )  # fmt: skip
    begun = both.start(shapes_of(both)).params[f"{modality}_encoder"]
    near(begun, result.params["student"], 0)
    if modality == "image":
        assert both.described == {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}


def the_pooler_came_along(teacher: str, student: str, vocab_size: int) -> None:
    """Of a student it is the teacher's, untouched by the decay of weights, and fine-tuning begins with it."""
    pooler = load_params(teacher)["pooler"]
    assert np.abs(pooler["kernel"]).max() > 0.05
    near(load_params(student)["pooler"], pooler, 0)
    tuned = text_classifier(vocab_size=vocab_size, classes=2, start=student)
    near(tuned.start(shapes_of(tuned)).params["pooler"], pooler, 0)


def shapes_of(network):
    return jax.eval_shape(lambda: network.init(jax.random.key(0), {}))


# ---- bad input


def test_what_does_not_go_together_is_said_in_a_line(made, tmp_path):
    other = save(tmp_path / "other", {**IMAGE, "patch_size": 8}, np.zeros((2, 32, 32, 3), np.float32))
    c = made["image"].copy_and_resolve_references()
    c.networks.teacher.start = other
    with pytest.raises(UserError, match="student/layers has 5 tokens of 16 channels and teacher/layers 17 of 16: give"):
        train_and_evaluate(c, tmp_path / "run")
    c = made["image"].copy_and_resolve_references()
    c.networks.student.depth = 3
    with pytest.raises(
        UserError, match="config.networks.student: .* has 2 layers, and depth is 3: set depth to 1 to 2"
    ):
        train_and_evaluate(c, tmp_path / "run")
    with pytest.raises(UserError, match="a layered image encoder of random weights needs a model"):
        layered_image(start="random")


@pytest.mark.parametrize(
    ("modality", "field", "value"),
    [("image", "output", "stream"), ("image", "layer_norm", False), ("text", "padding", False),
     ("text", "output", "mlp"), ("text", "layer_norm", True)],
)  # fmt: skip
def test_teacher_and_student_are_compared_by_the_same_rule(made, tmp_path, modality, field, value):
    c = made[modality].copy_and_resolve_references()
    c.networks.teacher[field] = value
    said = rf"config.networks.\w+.{field} is .* and config.networks.\w+.{field} .*: both make .* so set them alike"
    with pytest.raises(UserError, match=said):
        train_and_evaluate(c, tmp_path / "run")
    c.networks.student[field] = value
    build_experiment(c, None, {"vocab_size": 60})


def test_text_of_another_tokenizer_is_refused(made, tmp_path):
    """As many words, in another order."""
    c = made["text"].copy_and_resolve_references()
    weights = tmp_path / "bert"
    shutil.copytree(c.networks.teacher.start, weights)
    words = sorted(set((weights / "tokenizer" / "vocab.txt").read_text().split()), reverse=True)
    (weights / "tokenizer" / "tokenizer.json").unlink()
    (weights / "tokenizer" / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    c.networks.teacher.start = c.networks.student.start = str(weights)
    with pytest.raises(UserError, match="made with another tokenizer .* of running text, --tokenizer of `smke prepare"):
        train_and_evaluate(c, tmp_path / "run")


@pytest.mark.parametrize("name", ["kd_image", "kd_text"])
def test_the_smallest_forms_need_no_data(name, tmp_path, monkeypatch):
    """Pictures of drawn scenes, or their captions one after another in rows."""
    scenes = make_scenes(96, 16)
    monkeypatch.setattr(datasets, "scenes", lambda *_: scenes)
    c = load_config(f"{CONFIGS / name}.py:smoke")
    c.num_devices, c.log.report = 1, False
    outcome = train_and_evaluate(c, tmp_path)
    found = json.loads((tmp_path / "evals/2/layers.json").read_text())
    assert outcome.step == 2 and np.isfinite(found["loss"])
    if name == "kd_image":
        assert found["tokens"] == 16 * 5
    else:
        captions = [x for own in SceneSource("gallery").all_captions() for x in own]
        words = load_tokenizer(tmp_path / "tokenizer")
        marks = 2 * found["rows"]
        assert found["tokens"] - marks == sum(map(len, words.encode_parts(captions))) and found["rows"] < len(captions)
