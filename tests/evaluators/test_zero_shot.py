"""Zero-shot classification and probes: prototypes, files of templates, and runs and exports that are evaluated so."""

import json
import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from made_up import jpeg, write
from PIL import Image
from tiny_export import save_model

from smke_jax import load
from smke_jax.__main__ import main
from smke_jax.config_files import load_config
from smke_jax.data import datasets
from smke_jax.data.labelled.prompts import PLACE, TEMPLATES, prompts, read_names, read_templates
from smke_jax.data.scenes import make_scenes
from smke_jax.data.transforms import squash
from smke_jax.errors import UserError
from smke_jax.evaluators.encode import Encoder
from smke_jax.evaluators.zero_shot import prototypes, zero_shot, zero_shot_figures
from smke_jax.parallel.mesh import make_mesh
from smke_jax.parts import part
from smke_jax.passes.base import Pass
from smke_jax.tasks.base import Column, Split
from smke_jax.training.checkpoint import Checkpointer
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.opening import open_run

RNG, RNG_TABLE = np.random.default_rng(0).spawn(2)
CLASSES = ("blue_cat", "green", "red_dog")


# ---- prompts


def test_our_templates_have_one_place_each():
    assert len(set(TEMPLATES)) == len(TEMPLATES) and all(text.count(PLACE) == 1 for text in TEMPLATES)
    assert prompts(["a", "b"], ("x {}", "{} y")) == ["x a", "a y", "x b", "b y"]


def test_a_file_of_templates_is_read_as_it_was_published(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("\ufeff'a bad photo of a {}.',\n# of a notebook\n\n    \"a {}'s photo\",\nmany {}\n")
    assert read_templates(str(path)) == ("a bad photo of a {}.", "a {}'s photo", "many {}")


@pytest.mark.parametrize(("text", "message"), [
    ("a {}\na photo\n", r"templates.txt:2: 'a photo' has 0 places for a class: write each line as 'a photo of {}'"),
    ("lambda c: f'a photo of a {c}.',\n", r"has 0 places for a class"),
    ("a {} and a {}\n", r"templates.txt:1: .* has 2 places"),
    ("# nothing\n", "has no template"),
])  # fmt: skip
def test_a_template_without_its_place_is_named(tmp_path, text, message):
    write(tmp_path, {"templates.txt": text})
    with pytest.raises(UserError, match=message):
        read_templates(str(tmp_path / "templates.txt"))
    with pytest.raises(UserError, match="templates: .*nothing.txt cannot be read"):
        read_templates(str(tmp_path / "nothing.txt"))


def test_classes_are_called_as_a_file_says(tmp_path):
    assert read_names("", CLASSES) == ["blue cat", "green", "red dog"]
    write(tmp_path, {"names.txt": "a\nb\nc\n", "few.txt": "a\nb\n"})
    assert read_names(str(tmp_path / "names.txt"), CLASSES) == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"few.txt has 2 names for 3 classes: .*blue_cat, green, red_dog"):
        read_names(str(tmp_path / "few.txt"), CLASSES)


# ---- scores


def test_prototypes_are_means_of_directions():
    sentences = RNG.normal(size=(6, 4)) * RNG.uniform(0.1, 30, (6, 1))  # their lengths count for nothing
    expected = []
    for group in (sentences[:2], sentences[2:4], sentences[4:]):
        mean = sum(row / np.sqrt((row**2).sum()) for row in group) / 2
        expected.append(mean / np.sqrt((mean**2).sum()))
    np.testing.assert_allclose(prototypes(sentences, 3), expected, rtol=1e-5)


def test_the_class_of_the_nearest_prototype_is_found():
    photos = Split("p", "", {}, {"labels": np.array([0, 1, 2, 0]), "classes": CLASSES})
    images = np.array([[3, 0.1, 0], [0, 9, 1], [5, 0, 1], [0.5, 0, 0]], np.float32)
    figures = zero_shot_figures(images, np.repeat(np.eye(3), 2, axis=0), photos, "protocol")
    assert figures.scalars == {"top1": 75.0} and figures.arrays["predicted"].tolist() == [0, 1, 0, 0]


# ---- runs and exports


@pytest.fixture
def photos(tmp_path):
    files = {f"train/{name}/{i}.jpg": jpeg(20 * k + i) for k, name in enumerate(CLASSES) for i in range(5)}
    return write(tmp_path / "photos", files)


def run_config(photos):
    c = tiny.tiny_config()
    del c.evaluators.retrieval
    c.evaluators.zero_shot = part("zero_shot", data=str(photos), held_back=0.4, every=2)
    c.total_steps, c.checkpoint.every = 4, 2
    return c


@pytest.fixture
def run(photos, tmp_path):
    train_and_evaluate(run_config(photos), tmp_path / "run")
    return tmp_path / "run"


def test_a_run_is_ranked_by_it_and_others_are_evaluated_so_later(run, photos, capsys, tmp_path):
    records = {step: json.loads((run / f"evals/{step}/zero_shot.json").read_text()) for step in (2, 4)}
    assert [record["rows"] for record in records.values()] == [6, 6] and records[2]["classes"] == list(CLASSES)
    with Checkpointer(run / "checkpoints", read_only=True) as checkpoints:
        best = max(records, key=lambda step: (records[step]["top1"], step))
        assert records[checkpoints.best_step()]["top1"] == records[best]["top1"]

    # What the evaluator says is what the embeddings say.
    model = load(run)
    names = sorted((photos / "train").rglob("*.jpg"))
    images = dict(zip(names, model.encode_images(names), strict=True))
    texts = model.encode_texts([text.format(name) for name in sorted(x.replace("_", " ") for x in CLASSES)
                                for text in TEMPLATES])  # fmt: skip
    flags = ["--evaluator=zero_shot", "--config.evaluators.zero_shot.part=train"]
    assert main(["evaluate", f"--workdir={run}", *flags, "--config.evaluators.zero_shot.held_back=0"]) == 0
    capsys.readouterr()
    record = json.loads(next((run / "evals/4").glob("zero_shot-*part=train*.json")).read_text())
    weights = prototypes(texts, 3)
    nearest = [int(np.argmax(weights @ x)) for x in images.values()]
    expected = np.mean([sorted(CLASSES)[i] == path.parent.name for i, path in zip(nearest, images, strict=True)])
    assert record["top1"] == pytest.approx(100 * expected) and record["rows"] == 15

    # --data is the folder of this evaluator's images, and not that of the run's pairs.
    other = write(tmp_path / "other", {f"train/{c}/{i}.jpg": jpeg(i) for c in ("ant", "bee") for i in range(5)})
    assert main(["evaluate", f"--workdir={run}", "--evaluator=zero_shot", f"--data={other}"]) == 0
    record = json.loads(next((run / "evals/4").glob("zero_shot-*other*.json")).read_text())
    assert record["classes"] == ["ant", "bee"] and "other dev" in record["protocol"]

    # An evaluator that the run does not have.
    fields = {"data": photos, "feature": "image/out", "method": "ridge", "held_back": 0.4}
    flags = [f"--config.evaluators.probe.{name}={value}" for name, value in fields.items()]
    assert main(["evaluate", f"--workdir={run}", "--evaluator=probe", *flags]) == 0
    out = capsys.readouterr().out
    assert "ridge probe of image/out" in out and "fitted to 9 images" in out and "6 rows" in out
    assert main(["evaluate", f"--workdir={run}", "--evaluator=prob"]) == 2
    assert "no evaluator 'prob' among zero_shot: did you mean probe" in capsys.readouterr().err
    assert main(["evaluate", f"--workdir={run}", "--evaluator=probe"]) == 2
    assert "has no labels" in capsys.readouterr().err


def test_features_that_are_stored_do_not_stand_for_other_photos(photos, tmp_path, monkeypatch):
    """The gallery's features come from disk in this run; those of the photos need the frozen tower itself."""
    few = make_scenes(32, 16)
    monkeypatch.setattr(datasets, "scenes", lambda *_: few)
    c = load_config("configs/lit.py:smoke")
    c.num_devices, c.total_steps, c.log.report = 1, 1, False
    c.evaluators.zero_shot = part("zero_shot", data=str(photos), split="gallery", held_back=0.4)
    done = train_and_evaluate(c, tmp_path / "run")
    assert done.figures["zero_shot"].record["rows"] == 6


def test_an_export_leaves_out_photos_that_cannot_be_read(photos, tmp_path, capsys):
    folder = save_model(tmp_path / "model")
    flags = [f"--workdir={folder}", "--evaluator=zero_shot", f"--data={photos}", "--split=train"]
    flags += ["--config.evaluators.zero_shot.held_back=0", f"--out={tmp_path / 'figures.json'}"]
    write(photos, {f"train/{CLASSES[1]}/2.jpg": b"broken"})
    assert main(["evaluate", *flags]) == 0
    assert "14 rows, 1 left out that cannot be read" in capsys.readouterr().out
    record = json.loads((tmp_path / "figures.json").read_text())
    assert (record["rows"], record["skipped"]) == (14, 1)


def test_an_export_classifies_too(photos, tmp_path, capsys):
    folder = save_model(tmp_path / "model")
    out = tmp_path / "figures.json"
    flags = ["--evaluator=zero_shot", f"--data={photos}", "--split=train", "--config.evaluators.zero_shot.held_back=0"]
    assert main(["evaluate", f"--workdir={folder}", *flags, f"--out={out}"]) == 0
    record = json.loads(out.read_text())
    assert record["rows"] == 15 and "3 classes × 8 templates" in record["protocol"]
    model = load(folder)
    paths = sorted((photos / "train").rglob("*.jpg"))
    names = sorted(CLASSES)
    texts = model.encode_texts([t.format(n.replace("_", " ")) for n in names for t in TEMPLATES])
    nearest = (model.encode_images(paths) @ prototypes(texts, 3).T).argmax(1)
    right = [names[i] == path.parent.name for i, path in zip(nearest, paths, strict=True)]
    assert record["top1"] == pytest.approx(100 * np.mean(right))

    def error(*more):
        assert main(["evaluate", f"--workdir={folder}", *more]) == 2
        return capsys.readouterr().err

    assert "data is empty" in error("--evaluator=zero_shot")
    shutil.rmtree(folder / "tokenizer")
    assert f"{folder} embeds no texts, or its vocabulary is missing" in error(*flags)
    assert "--evaluator is retrieval or zero_shot" in error("--evaluator=probe", f"--data={photos}")
    assert "zero_shot.level is for runs" in error(*flags, "--config.evaluators.zero_shot.level=head")


def test_what_an_evaluator_reads_is_looked_at_before_the_first_step(photos, tmp_path):
    write(tmp_path, {"bad.txt": "a photo\n", "few.txt": "a\n"})
    c = run_config(photos)
    for name, value, message in (
        ("data", str(tmp_path / "no"), "no folder at"),
        ("templates", str(tmp_path / "bad.txt"), "has 0 places for a class"),
        ("class_names", str(tmp_path / "few.txt"), "has 1 name for 3 classes"),
    ):
        own = c.copy_and_resolve_references()
        own.evaluators.zero_shot[name] = value
        with pytest.raises(UserError, match=message):
            open_run(own, tmp_path / "refused")
    c.evaluators.probe = part("probe", data=str(photos), feature="image/out", part="train")
    with pytest.raises(UserError, match="fitted to the images that it is evaluated on: set part to another"):
        open_run(c, tmp_path / "refused")


class Words:
    """Every letter is a token."""

    def encode(self, texts, length):
        ids = np.array([[ord(c) for c in text[:length].ljust(length)] for text in texts], np.int32)
        return ids, (ids != 32).astype(np.int32)


@pytest.mark.parametrize("devices", (1, 8))
def test_it_is_the_same_on_one_and_eight_devices(photos, devices):
    """Images and sentences through passes that NumPy repeats."""
    table = RNG_TABLE.normal(size=(256, 3)).astype(np.float32)
    see = lambda params, a, key, train: {"image/out": a["image"].astype(jnp.float32).mean((1, 2)) - 128}  # noqa: E731
    read = lambda params, a, key, train: {"text/out": jnp.asarray(table)[a["text"]].mean(1)}  # noqa: E731
    passes = Pass("see", (), ("image",), ("image/out",), see), Pass("read", (), ("text",), ("text/out",), read)
    chosen = lambda names, columns: [p for p in passes if set(p.provides) & set(names)]  # noqa: E731
    encode = Encoder(chosen, lambda p: {}, make_mesh(devices), batch_size=8)
    column = lambda *shape: Column(2, lambda rows: np.zeros((len(rows), *shape), np.uint8))  # noqa: E731
    like = Split("dev", "", {"image": column(16, 16, 3), "text": column(20), "text_mask": column(20)})
    task = SimpleNamespace(tokenizer=Words())
    found = zero_shot(data=str(photos), part="train", held_back=0.0).run(encode, task, like)
    names = [name.replace("_", " ") for name in sorted(CLASSES)]
    ids, _ = Words().encode([text.format(name) for name in names for text in TEMPLATES], 20)
    weights = prototypes(table[ids].mean(1), 3)
    seen = [squash(np.asarray(Image.open(path).convert("RGB")), 16) for path in sorted(photos.rglob("*.jpg"))]
    nearest = [int(np.argmax(weights @ (x.astype(np.float32).mean((0, 1)) - 128))) for x in seen]
    assert found.arrays["predicted"].tolist() == nearest and len(set(nearest)) > 1
    # A photo that cannot be read is left out, with its label.
    write(photos, {f"train/{sorted(CLASSES)[1]}/2.jpg": b"broken"})
    fewer = zero_shot(data=str(photos), part="train", held_back=0.0).run(encode, task, like)
    assert fewer.arrays["predicted"].tolist() == nearest[:7] + nearest[8:] and fewer.record["skipped"] == 1
    assert fewer.arrays["label"].tolist() == [0] * 5 + [1] * 4 + [2] * 5 and fewer.record["rows"] == 14
    assert "16 px" in found.record["protocol"] and "20 tokens" in found.record["protocol"]
