"""Encoders by themselves: sentence vectors, probes of them, and the table of a run beside what it began with."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from scipy import stats

from smke_jax.__main__ import main
from smke_jax.config_files import load_config
from smke_jax.convert.params_file import PARAMS, save_params
from smke_jax.data.glue import sentences
from smke_jax.data.tokenizer import load_tokenizer, train_wordpiece
from smke_jax.evaluators.encode import Encoder
from smke_jax.models.build import build_model, param_shapes
from smke_jax.networks.text_tower import text_tower
from smke_jax.parallel.mesh import make_mesh
from smke_jax.parts import text_classifier
from smke_jax.studies.encoders.images import image_figures, image_tasks
from smke_jax.studies.encoders.texts import SIZES, TextTask, encoded, text_probe
from smke_jax.studies.encoders.towers import Tower
from smke_jax.training.loop import train_and_evaluate

RNG = np.random.default_rng(0)
WORDS = "a red ball lies on the green grass under an old tree and nobody plays with it today".split()
TEXTS = [" ".join(RNG.choice(WORDS, count)) for count in (3, 40, 20, 5, 70, 14, 31, 9)]

PAIRS = [[" ".join(RNG.choice(WORDS, count)) for count in RNG.integers(2, 9, 2)] for _ in range(25)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A BERT of two layers with its vocabulary."""
    folder = tmp_path_factory.mktemp("weights")
    words = train_wordpiece(WORDS, 80)
    words.save(folder / "tokenizer")
    model = {"type": "bert", "vocab_size": words.vocab_size, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 8,
             "max_positions": 64, "type_vocab_size": 2, "pooler": False}  # fmt: skip
    ids = np.ones((1, 3), np.int32)
    params = jax.tree.map(
        lambda x: 8 * x if x.ndim > 1 else x, build_model(model).init(jax.random.key(1), ids, ids)["params"]
    )
    save_params(folder / PARAMS, params, {"model": model, "source": {"layout": "bert", "file": "x", "sha256": "1"}})
    return folder


def test_vectors_are_those_of_each_sentence_by_itself(weights):
    words = load_tokenizer(weights / "tokenizer")
    network = text_tower(vocab_size=words.vocab_size, start=str(weights), trained=False)
    params = network.start(jax.eval_shape(lambda: network.init(jax.random.key(0), {}))).params
    passes = network.forward("words", {})
    encode = Encoder(lambda names, columns: passes, lambda p: {"words": params}, make_mesh(2), batch_size=4)
    found = encoded(encode, words, TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids, mask = words.encode([text], SIZES[-1])
        alone = passes[0].run({"words": params}, {"text": ids, "text_mask": mask}, None, False)["words/feature"][0]
        np.testing.assert_allclose(vector, alone, atol=1e-5)


def made(name, texts, labels):
    return sentences(f"{name} dev", texts, np.asarray(labels), {})


def test_a_score_is_compared_with_the_cosine():
    first, second = ([f"{i} {side}" for i in range(30)] for side in "ab")
    known = {text: RNG.normal(size=5) for text in first + second}
    labels = RNG.uniform(0, 5, 30).astype(np.float32)
    vectors = lambda texts: np.stack([known[text] for text in texts])  # noqa: E731
    figures = text_probe(vectors, TextTask("stsb", None, made("stsb", (first, second), labels)))
    cosines = [
        known[a] @ known[b] / np.sqrt((known[a] @ known[a]) * (known[b] @ known[b])) for a, b in zip(first, second)
    ]
    assert figures.scalars["spearman"] == pytest.approx(100 * stats.spearmanr(cosines, labels)[0])


def test_a_class_is_read_from_sentences_and_from_what_pairs_have_in_common():
    """What a pair shares is in |u - v| alone: from u and v by themselves no line could tell."""
    texts = [str(i) for i in range(400)]
    known = dict(zip(texts, RNG.choice([-1.0, 1.0], (400, 1)) * np.ones(6) + 0.1 * RNG.normal(size=(400, 6))))
    vectors = lambda texts: np.stack([known[text] for text in texts])  # noqa: E731
    signs = np.array([known[text][0] > 0 for text in texts]).astype(np.int32)
    single = [made("cola", (texts[i : i + 200],), signs[i : i + 200]) for i in (0, 200)]
    found = text_probe(vectors, TextTask("cola", *single))
    assert found.scalars == {"matthews": 100.0, "accuracy": 100.0}
    same = (signs[:200] == signs[200:]).astype(np.int32)
    pairs = [made("wnli", (texts[i : i + 100], texts[200 + i : 300 + i]), same[i : i + 100]) for i in (0, 100)]
    assert text_probe(vectors, TextTask("wnli", *pairs)).scalars == {"accuracy": 100.0}


def glue(folder: Path) -> Path:
    for name in ("CoLA", "STS-B"):
        (folder / name).mkdir(parents=True)
    lines = [f"x\t{i % 2}\t\t{text}" for i, text in enumerate(TEXTS * 2)]
    scores = [f"{i}" + "\tx" * 6 + f"\t{a}\t{b}\t{i % 6}" for i, (a, b) in enumerate(PAIRS)]
    for split in ("train", "dev"):
        (folder / "CoLA" / f"{split}.tsv").write_text("\n".join(lines))
        (folder / "STS-B" / f"{split}.tsv").write_text("\n".join(scores))
    return folder


def test_the_encoders_of_a_run_beside_what_it_began_with(weights, tmp_path, capsys, monkeypatch):
    data = glue(tmp_path / "glue")
    c = load_config("configs/finetune_text.py:cola,smoke")
    c.update(num_devices=1, batch_size=8, eval_batch_size=8)
    c.log.report = False
    c.task.update(files="glue", data=str(data / "CoLA"), tokenizer=str(weights / "tokenizer"), max_length=20)
    c.networks.text = text_classifier(start=str(weights), depth=1)
    c.optimizer.learning_rate = 0.1
    c.evaluators.dev.split = "dev"
    run = tmp_path / "run"
    train_and_evaluate(c, run)
    capsys.readouterr()
    command = ["evaluate", f"--workdir={run}", "--evaluator=encoders"]
    assert main([*command, f"--data={data}"]) == 0
    out = capsys.readouterr().out
    found = json.loads((run / "evals/2/encoders-glue.json").read_text())
    names = [
        "the run's own",
        f"{weights}, its first 1 layers",
        f"{weights}, with which the run began",
        "random weights",
    ]
    assert list(found["text"]) == names and all(f"| {name}" in out for name in names) and not found["left_out"]
    values = [own["stsb dev"]["spearman"] for own in found["text"].values()]
    assert len(set(values)) == 4 and all(own["cola dev"]["rows"] == 16 for own in found["text"].values())

    monkeypatch.chdir(data)
    assert main([*command, "--data=.", f"--out={tmp_path / 'figures.json'}"]) == 0
    assert json.loads((tmp_path / "figures.json").read_text()) == found
    assert [path.name for path in (run / "evals/2").glob("encoders*")] == ["encoders-glue.json"]
    (tmp_path / "empty").mkdir()
    (weights / PARAMS).rename(weights / "gone")
    assert main([*command, f"--data={data}"]) == 0
    assert f"left out: text: {weights}, with which the run began (" in capsys.readouterr().out
    (weights / "gone").rename(weights / PARAMS)
    for more, message in (
        ([], "--evaluator=encoders needs --data"),
        ([f"--data={tmp_path / 'no'}"], f"--data: there is no folder {tmp_path / 'no'}"),
        ([f"--data={tmp_path / 'empty'}"], "empty has nothing to compare encoders on: give a folder with folders of"),
        ([f"--data={data}", "--split=dev"], "--split says nothing to --evaluator=encoders: leave it out"),
    ):
        assert main([*command, *more]) == 2
        assert message in capsys.readouterr().err


def colours(folder: Path, noise: int = 120) -> Path:
    rng = np.random.default_rng(0)
    for number, name in enumerate(("blue", "green", "red")):
        (folder / "colours" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, noise, (40, 30, 3)) + (250 - noise) * np.eye(3, dtype=int)[number]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "colours" / name / f"{i}.png")
    return folder


def test_a_tower_of_images_that_is_cut_is_a_file_of_these_layers_alone(tmp_path):
    vit = {"type": "vit", "image_size": 16, "patch_size": 8, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 12}
    params = jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), param_shapes(vit))
    first = {name: x for name, x in params.items() if name != "block_1"}
    for name, depth, own in (("whole", 2, params), ("first", 1, first)):
        (tmp_path / name).mkdir()
        pixels = {"mean": [0.5] * 3, "std": [0.2] * 3}
        save_params(tmp_path / name / PARAMS, own, {"model": vit | pixels | {"depth": depth}})
    experiment = SimpleNamespace(mesh=make_mesh(1), task=SimpleNamespace(threads=0))
    run = SimpleNamespace(experiment=experiment, config={"eval_batch_size": 8, "attention": "auto"})
    tasks = image_tasks(colours(tmp_path / "tasks", noise=249))
    predicted = [
        image_figures(run, Tower("x", str(tmp_path / name), depth=depth), tasks)[0].arrays["predicted"].tolist()
        for name, depth in (("whole", 1), ("first", None), ("whole", None))
    ]
    assert predicted[0] == predicted[1] != predicted[2]


def test_both_towers_of_an_image_text_run(tmp_path, capsys):
    data = glue(tmp_path / "tasks")
    colours(data)
    c = tiny.tiny_config()
    c.update(total_steps=1, num_devices=1)
    c.checkpoint.every = 1
    del c.evaluators.retrieval
    train_and_evaluate(c, tmp_path / "run")
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}", "--evaluator=encoders", f"--data={data}"]) == 0
    found = json.loads((tmp_path / "run/evals/1/encoders-tasks.json").read_text())
    assert {side: list(found[side]) for side in ("image", "text")} == dict.fromkeys(
        ("image", "text"), ["the run's own", "random weights"]
    )
    for own in found["image"].values():
        assert own["colours dev"]["rows"] == 6 and own["colours dev"]["top1"] == 100.0
    assert set(found["text"]["the run's own"]) == {"cola dev", "stsb dev"} and not found["left_out"]
    assert "| image encoder" in capsys.readouterr().out
