"""The three embedders are of one network, and the program writes what it measured."""

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_export import save_model

import smke_jax
from smke_jax.convert.export import hf, pytorch
from smke_jax.convert.export.base import Network
from smke_jax.errors import UserError
from smke_jax.studies.benchmarks import inference, pytorch_inference

ARGUMENTS = ["--count=5", "--texts=6", "--batch_size=2", "--rounds=2", "--seconds=0.02", "--tries=2"]


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """What `smke export --format=hf` writes, without the checks."""
    model = smke_jax.load(save_model(tmp_path_factory.mktemp("model")))
    folder = tmp_path_factory.mktemp("export")
    params = jax.device_get(model._networks.params["embedder"])
    image = {**model.description["image"], "type": "data2vec2"}
    description = {**model.description, "image": image, "logit_scales": {"itc": {"out": 1.0}}}
    network = Network(params, description, model.tokenizer, None)
    hf.FORMAT.write(folder, network, "float32")
    pytorch.write_tokenizer(folder, network)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 255, (20, 24 + i, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow
def test_the_embedders_are_of_one_network(export, photos, tmp_path):
    paths, texts = sorted(photos.iterdir()), inference.TEXTS[:3]
    pytorch_inference.write_graphs(export, tmp_path)
    runs = inference.contenders(export, tmp_path).values()
    (images, words) = ([run[i](given, 2) for run in runs] for i, given in enumerate((paths, texts)))
    for ours, *others in (images, words):
        for other in others:
            np.testing.assert_allclose(other, ours, atol=1e-5)
    assert {x.shape for x in images} == {(5, 8)} and {x.shape for x in words} == {(3, 8)}


def test_the_program_writes_ratios(export, photos, tmp_path, monkeypatch):
    # The graphs, and PyTorch in processes of its own, take longer than this test may.
    monkeypatch.setattr(pytorch_inference, "write_graphs", lambda export, directory: None)
    monkeypatch.setattr(
        pytorch_inference, "in_onnxruntime", lambda graphs, export: pytorch_inference.in_pytorch(export)
    )
    monkeypatch.setattr(inference, "COLD", dict.fromkeys(inference.COLD, "import sys; assert len(sys.argv) == 4"))
    out = tmp_path / "out.md"
    arguments = [f"--export={export}", f"--photos={photos}", *ARGUMENTS, f"--out={out}"]
    assert inference.main(arguments) == 0
    text = out.read_text()
    assert "5 photos of photos" in text.replace(photos.name, "photos") and "the lowest cosine" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[1:]] == [
        "photos/s", "texts/s", "one text, ms", "cold process to the first text, s",
    ]  # fmt: skip
    assert all(len(row) == 6 for row in rows)


def test_ratios_above_one_are_in_our_favour():
    faster = {"smke_jax": [20.0, 20.0], "PyTorch": [10.0, 5.0], "onnxruntime": [40.0, 40.0]}
    lines = inference.table([("photos/s", faster, True), ("one text, ms", faster, False)]).splitlines()
    assert lines[2].endswith("| 3.00 (2.00–4.00) | 0.500 (0.500–0.500) |")
    assert lines[3].endswith("| 0.375 (0.250–0.500) | 2.00 (2.00–2.00) |")


def test_networks_that_differ_are_no_fair_race():
    x = np.eye(2, dtype=np.float32)
    assert inference.check_alike({"smke_jax": x, "PyTorch": x, "onnxruntime": x}, "photos") == 1
    with pytest.raises(UserError, match="the embeddings of photos differ, their lowest cosine is 0.0000"):
        inference.check_alike({"smke_jax": x, "PyTorch": x, "onnxruntime": x[::-1]}, "photos")
