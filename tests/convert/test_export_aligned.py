"""Frozen towers, a text tower and projections leave as one model, which embeds as in the run, in PyTorch too."""

import re
import shutil
import sys

import jax
import numpy as np
import pytest
from odd_pictures import odd_pictures
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoModel, AutoProcessor, pipeline

import smke_jax
from smke_jax.convert.export import pytorch
from smke_jax.convert.export.onnx import onnx_pixels
from smke_jax.convert.params_file import save_params
from smke_jax.data import datasets
from smke_jax.data.scenes import make_scenes
from smke_jax.errors import UserError
from smke_jax.forms import form_of
from smke_jax.models.build import param_shapes
from smke_jax.parts import bert, itc, part, projections, text_tower, transformer
from smke_jax.training.export import export_run
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.restore import restore_run

SCENES = make_scenes(24, 16)
SHORT = ("a", "a a", "a a a", "a a a a")  # captions of up to six tokens
SIZES = {"width": 16, "num_heads": 2, "mlp_dim": 8}
TOWERS = {
    "cells": {"type": "efficientnet_lite", "image_size": 32, "width": 24, "width_multiplier": 0.25,
              "depth_multiplier": 0.3, "num_classes": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
    "patches": {"type": "vit", "image_size": 28, "patch_size": 14, "depth": 3, "layer_scale": 0.5,
                "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], **SIZES},
}  # fmt: skip


def tower(folder, name, **fields):
    """A frozen network of random weights from a file, with norms whose statistics are not those of a start."""
    rng, description = np.random.default_rng(len(name)), TOWERS[name]
    params = jax.tree.map(lambda x: rng.uniform(0.1, 0.6, x.shape).astype(np.float32), param_shapes(description))
    (folder / name).mkdir()
    save_params(folder / name / "params.safetensors", params, {"model": description})
    return part("frozen", start=str(folder / name), makes=name, image=f"{name}_image", **fields)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligned")
    c = form_of("smoke").run()
    c.batch_size, c.num_devices, c.log.report = 8, 1, False
    c.task = form_of("smoke").pairs(unit="images")
    c.networks.cells = tower(folder, "cells", layers=(3, 9))
    c.networks.patches = tower(folder, "patches", pools=("cls", "mean"), layers=(1, 3), close_up=0.8)
    c.networks.words = text_tower(start="random", model=bert(depth=1, max_positions=12, word_width=6, **SIZES))
    c.networks.student = projections(
        image=("cells/feature", "patches/feature"),
        width=8,
        hidden=12,
        head=5,
        shared=transformer(num_heads=2, mlp_dim=6),
    )
    c.terms.itc = itc(levels=("out",))
    c.evaluators.retrieval = form_of("smoke").retrieval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "scenes", lambda *_: SCENES)
        train_and_evaluate(c, folder / "run")
        yield folder / "run"


@pytest.fixture(scope="module")
def restored(run):
    return restore_run(run)


@pytest.fixture(scope="module")
def library(run):
    return smke_jax.load(run)


@pytest.fixture(scope="module")
def own(restored):
    """(the first four images and captions of the gallery, their normalised embeddings as the run evaluates them)."""
    split = restored.experiment.task.split("gallery")
    encode = restored.encoder()
    found = {side: encode((f"{side}/out",), split)[f"{side}/out"][:4] for side in ("image", "text")}
    pictures = [Image.fromarray(split.facts["pixels"](i)) for i in range(4)]
    captions = [split.facts["captions"][i] for i in range(4)]
    return pictures, captions, {k: x / np.linalg.norm(x, axis=1)[:, None] for k, x in found.items()}


@pytest.mark.parametrize("opened", ["run", "export"])
def test_it_is_opened_with_its_towers(run, own, tmp_path, opened):
    if opened == "export":
        written = export_run(run, tmp_path / "flax")
        assert {name.partition("/")[2] for name in written.likeness} >= {"out", "fc1", "head"}
    model = smke_jax.load(run if opened == "run" else tmp_path / "flax")
    pictures, captions, expected = own
    np.testing.assert_allclose(model.encode_images(pictures), expected["image"], atol=2e-5)
    np.testing.assert_allclose(model.encode_texts(captions), expected["text"], atol=2e-5)


@pytest.fixture(scope="module")
def hf(run, tmp_path_factory):
    """The directory for PyTorch, and what the export said of it."""
    directory = tmp_path_factory.mktemp("aligned_hf") / "hf"
    return directory, export_run(run, directory, format="hf")


@pytest.fixture(scope="module")
def onnx(run, tmp_path_factory):
    """The directory of the two graphs, and a session of each."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    directory = tmp_path_factory.mktemp("aligned_onnx") / "onnx"
    written = export_run(run, directory, format="onnx")
    assert set(written.likeness) == {"image_embeds", "text_embeds"}
    return directory, {name: onnxruntime.InferenceSession(directory / f"{name}.onnx") for name in ("image", "text")}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_onnxruntime_embeds_as_the_run(onnx, own, restored, library, count):
    """Two image towers, whose pixels stand in a row, and a text tower with a narrower table of words."""
    directory, sessions = onnx
    pictures, captions, expected = own
    arrays = [np.asarray(x) for x in pictures[:count]]
    pixels = onnx_pixels(directory, arrays, sessions["image"].get_inputs()[0].shape)
    assert pixels.shape == (count, 3 * (32**2 + 28**2))
    found = sessions["image"].run(None, {"pixel_values": pixels})[0]
    np.testing.assert_allclose(found, expected["image"][:count], atol=2e-5)
    for length in (6, 11, 12):  # the model has 12 positions
        ids, mask = restored.experiment.task.tokenizer.encode(SHORT[:count], length)
        found = sessions["text"].run(None, {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)})
        np.testing.assert_allclose(found[0], library.encode_texts(SHORT[:count]), atol=2e-5)


def test_onnxruntime_gets_a_long_caption_cut(library, onnx):
    """By tokenizer.json; or, by a tokenizer that loses the end of a text that it cuts, in the graph."""
    directory, sessions = onnx
    text = "a small red dog runs over the green grass " * 40
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    cut = backend.encode(text).ids
    backend.no_truncation()
    for ids in (cut, backend.encode(text).ids[: len(cut)]):
        inputs = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        found = sessions["text"].run(None, inputs)
        np.testing.assert_allclose(found[0], library.encode_texts([text]), atol=2e-5)


def test_int8_says_what_it_retrieves(run, own, tmp_path):
    written = export_run(run, tmp_path / "int8", dtype="int8")
    pictures, captions, expected = own
    found = smke_jax.load(tmp_path / "int8").encode_texts(captions)
    worst = (found * expected["text"]).sum(1).min()
    assert 0.98 < worst < 1 and written.likeness["text_embeds"].cosine <= worst + 1e-6
    card = (tmp_path / "int8" / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith(("| the run |", "| as exported |"))]
    assert len(rows) == 2 and all(line.count("|") == 8 for line in rows)
    with pytest.raises(UserError, match="--dtype=int8 is for --format=flax: give float32, float16, bfloat16 with"):
        export_run(run, tmp_path / "hf8", format="hf", dtype="int8")


def test_pytorch_embeds_as_the_run(hf, restored, own):
    torch = pytest.importorskip("torch")
    directory, written = hf
    assert all(x.delta < 1e-5 for x in written.likeness.values()), written.likeness
    modeling = pytorch.import_modeling(directory / "modeling_aligned.py", beside=("modeling_smke.py",))
    model = modeling.AlignedModel.from_directory(directory)
    pictures, captions, expected = own
    ids, mask = restored.experiment.task.tokenizer.encode(captions, 12)
    with torch.inference_mode():
        found = model(model.preprocess(pictures), torch.tensor(ids), torch.tensor(mask))
    np.testing.assert_allclose(found["image_embeds"], expected["image"], atol=2e-5)
    np.testing.assert_allclose(found["text_embeds"], expected["text"], atol=2e-5)
    opened = smke_jax.load(directory)
    np.testing.assert_allclose(opened.encode_images(pictures), expected["image"], atol=2e-5)
    np.testing.assert_allclose(opened.encode_texts(captions), expected["text"], atol=2e-5)
    card = (directory / "README.md").read_text()
    assert "`patches` (vit)" in card and "AlignedModel.from_directory" in card and "library_name: transformers" in card


def test_transformers_opens_it(hf, own, transformers_cache, tmp_path):
    directory, _ = hf
    model = AutoModel.from_pretrained(directory, trust_remote_code=True, attn_implementation="sdpa")
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    pictures, captions, expected = own
    inputs = processor(text=captions, images=pictures, padding=True, truncation=True, return_tensors="pt")
    outputs = model(**inputs)
    np.testing.assert_allclose(outputs.image_embeds.detach(), expected["image"], atol=2e-5)
    np.testing.assert_allclose(outputs.text_embeds.detach(), expected["text"], atol=2e-5)
    cosines = expected["image"] @ expected["text"].T
    np.testing.assert_allclose(outputs.logits_per_image.detach(), np.exp(model.config.logit_scale) * cosines, atol=1e-3)
    assert model.config.projection_dim == expected["text"].shape[1]
    assert model.config.max_position_embeddings == 12
    model.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True)
    found = again.get_image_features(**processor(images=pictures, return_tensors="pt"))
    np.testing.assert_allclose(found.detach(), expected["image"], atol=2e-5)


def test_pictures_of_every_kind_are_what_they_are_in_the_library(hf, transformers_cache):
    directory, _ = hf
    model = AutoModel.from_pretrained(directory, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    pictures = odd_pictures()
    expected = smke_jax.load(directory).encode_images(pictures)
    theirs = model.get_image_features(**processor(images=pictures, return_tensors="pt"))
    np.testing.assert_allclose(theirs.detach(), expected, atol=2e-5)
    np.testing.assert_allclose(model.get_image_features(model.preprocess(pictures)).detach(), expected, atol=2e-5)


def test_zero_shot_classification_of_transformers(hf, own, transformers_cache):
    directory, _ = hf
    # The pipeline asks for no truncation.
    picture, labels = own[0][0], ["red dog", "small cat", "a small cat over a red dog " * 90]
    pipe = pipeline("zero-shot-image-classification", model=str(directory), trust_remote_code=True)
    found = {x["label"]: x["score"] for x in pipe(picture, labels, hypothesis_template="{}")}
    logits = float(pipe.model.logit_scale.exp()) * smke_jax.load(directory).similarity([picture], labels)[0]
    scores = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([found[label] for label in labels], scores, atol=1e-4)


def test_sentence_transformers_embeds_texts_and_pictures(hf, own, transformers_cache):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    directory, _ = hf
    model = sentence_transformers.SentenceTransformer(str(directory), trust_remote_code=True)
    library = smke_jax.load(directory)
    texts = ["red dog", "a small cat " * 40]
    np.testing.assert_allclose(model.encode(texts), library.encode_texts(texts), atol=1e-5)
    np.testing.assert_allclose(model.encode(odd_pictures()), library.encode_images(odd_pictures()), atol=2e-5)


def test_the_snippets_of_the_card_for_onnxruntime(onnx, own, library, monkeypatch, tmp_path):
    folder = shutil.copytree(onnx[0], tmp_path / "copy")
    own[0][0].save(folder / "photo.jpg")
    monkeypatch.chdir(folder)
    snippets = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    found = [{}, {}]
    for snippet, names in zip(snippets, found, strict=True):
        exec(snippet, names)
    np.testing.assert_allclose(found[0]["embedding"][0], library.encode_texts("a dog runs across the grass"), atol=2e-5)
    np.testing.assert_allclose(found[1]["embedding"][0], library.encode_images("photo.jpg"), atol=2e-5)


def test_every_snippet_of_the_card_runs(hf, own, transformers_cache, monkeypatch, tmp_path):
    folder = shutil.copytree(hf[0], tmp_path / "copy")
    own[0][0].save(folder / "photo.jpg")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    snippets = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        exec(snippet, {})
    for name in ("modeling_smke", "modeling_aligned"):
        sys.modules.pop(name, None)


def test_a_format_that_cannot_hold_it_says_which_can(run, tmp_path):
    with pytest.raises(
        UserError, match="type aligned, and --format=thesis is for models of type student: use flax or hf or onnx"
    ):
        export_run(run, tmp_path / "thesis", format="thesis")
    assert not list(tmp_path.iterdir())
