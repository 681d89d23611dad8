"""CLIP_benchmark measures an export as this package does, on the same photos."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up import write
from PIL import Image
from tiny_export import save_model

import smke_jax
from smke_jax.convert.export import clients, pytorch
from smke_jax.convert.export.base import Network, Record
from smke_jax.convert.export.hf import FORMAT as HF
from smke_jax.convert.params_file import load_params, read_description
from smke_jax.data.tokenizer import load_tokenizer
from smke_jax.evaluators.recalls import retrieval_metrics

CLASSES = ("blue", "red", "snow", "dog", "over")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A student of random weights as a directory for PyTorch."""
    folder = tmp_path_factory.mktemp("clip_benchmark")
    (folder / "flax").mkdir()
    model = save_model(folder / "flax")
    description = read_description(model / "params.safetensors")["model"] | {"logit_scales": {}}
    network = Network(load_params(model), description, load_tokenizer(model / "tokenizer"), Record({}, {}, 0))
    (folder / "hf").mkdir()
    HF.write(folder / "hf", network, "float32")
    return folder / "hf"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(folder of photos in one folder a class, a file of JSON lines, the photos, their captions)."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    words = ["a red dog", "blue snow", "the dog runs", "over the blue snow", "red", "runs " * 30]
    photos, captions = [], []
    for i in range(20):
        photos.append(Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)))
        captions.append([f"{words[j % 6]} {words[(i * j) % 5]}" for j in range(i % 3 + 1)])
        (folder / CLASSES[i % 5]).mkdir(exist_ok=True)
        photos[-1].save(folder / CLASSES[i % 5] / f"{i:02}.png")
    lines = [{"image_path": f"{CLASSES[i % 5]}/{i:02}.png", "captions": x} for i, x in enumerate(captions[:-1])]
    # Of the last photo a line for each caption.
    lines += [{"image_path": f"{CLASSES[4]}/19.png", "text": x} for x in captions[-1]]
    file = folder / "captions.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder, file, photos, captions


@pytest.fixture
def adapter(export, transformers_cache):
    return pytorch.import_modeling(export / clients.ADAPTER)


def test_the_adapter_embeds_as_the_library(export, adapter, data):
    _, file, photos, captions = data
    model, transform, tokenizer = adapter.load(export)
    library, texts = smke_jax.load(export), [text for own in captions for text in own]
    pixels, found = adapter.with_lists([adapter.captioned(file, transform)[i] for i in range(len(photos))])
    assert found == captions
    np.testing.assert_allclose(model.encode_image(pixels).detach(), library.encode_images(photos), atol=1e-5)
    np.testing.assert_allclose(model.encode_text(tokenizer(texts)).detach(), library.encode_texts(texts), atol=1e-5)


def test_retrieval_has_the_figures_of_this_package(export, adapter, data):
    pytest.importorskip("clip_benchmark")
    _, file, photos, captions = data
    found = adapter.retrieval(export, file, batch_size=8)
    library, texts = smke_jax.load(export), [text for own in captions for text in own]
    owner = np.repeat(np.arange(len(photos)), [len(own) for own in captions])
    ours = retrieval_metrics(library.encode_images(photos), library.encode_texts(texts), owner, protocol="any of n")
    for k in (1, 5, 10):
        assert 100 * found[f"text_retrieval_recall@{k}"] == pytest.approx(ours["image_to_text"][f"r{k}"])
        assert 100 * found[f"image_retrieval_recall@{k}"] == pytest.approx(ours["text_to_image"][f"r{k}"])


def test_zero_shot_classification_is_the_argmax_of_cosines(export, data, tmp_path):
    pytest.importorskip("clip_benchmark")
    folder = data[0]
    command = [sys.executable, export / clients.ADAPTER, "classification", folder, "--template", "a {c}", "--template",
               "the {c} runs"]  # fmt: skip
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    library, classes = smke_jax.load(export), sorted(CLASSES)
    texts = library.encode_texts([t.format(c=c) for c in classes for t in ("a {c}", "the {c} runs")])
    means = texts.reshape(len(classes), 2, -1).mean(1)
    paths = [(path, i) for i, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
    cosines = library.similarity([path for path, _ in paths], means)
    right = cosines.argmax(1) == [label for _, label in paths]
    assert found["acc1"] == pytest.approx(right.mean()) == pytest.approx(found["mean_per_class_recall"])
    assert found["acc5"] == 1


# The functions of CLIP_benchmark that the adapter calls, for where the package is not installed.
STAND_IN = {
    "__init__.py": "",
    "zeroshot_retrieval.py": """
import torch

def evaluate(model, dataloader, tokenizer, device, amp, recall_k_list):
    embedded = [(model.encode_image(images), [model.encode_text(tokenizer(own)) for own in texts])
                for images, texts in dataloader]
    count = sum(len(images) for images, _ in embedded)
    return {f"image_retrieval_recall@{k}": k / count for k in recall_k_list}
""",
    "zeroshot_classification.py": """
import torch

def zero_shot_classifier(model, tokenizer, classnames, templates, device, amp):
    rows = [model.encode_text(tokenizer([t.format(c=name) for t in templates])).mean(0) for name in classnames]
    return torch.stack(rows, dim=1)

def run_classification(model, classifier, dataloader, device, amp):
    pairs = [(model.encode_image(images) @ classifier, target) for images, target in dataloader]
    return tuple(torch.cat(x) for x in zip(*pairs))
""",
}


@pytest.mark.slow
def test_the_command_lines_of_the_card_run(export, data, tmp_path):
    folder = shutil.copytree(export, tmp_path / "export")
    shutil.copytree(data[0], folder / "flowers")
    shutil.copytree(data[0], folder, dirs_exist_ok=True)  # captions.jsonl and the photos that it names
    (folder / "flowers/captions.jsonl").unlink()
    path = [str(Path(clients.__file__).parents[3])]
    if importlib.util.find_spec("clip_benchmark") is None:
        write(tmp_path / "stand_in/clip_benchmark/metrics", STAND_IN)
        path.append(str(tmp_path / "stand_in"))
    (lines,) = {found for card in HF.usage.values() for found in re.findall(r"```bash\n(.*?)```", card, re.DOTALL)}
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
    }
    printed = subprocess.run(
        ["bash", "-euc", lines], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout
    retrieval, classification = map(json.loads, re.findall(r"\{.*?\}", printed, re.DOTALL))
    assert 0 <= retrieval["image_retrieval_recall@1"] <= 1 and 0 <= classification["acc1"] <= 1
