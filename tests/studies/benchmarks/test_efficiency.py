"""The efficiency tables of two small models: sizes counted by hand, both sides timed, recalls of a prepared folder."""

import shutil

import jax
import made_up
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny_export import save_model

import smke_jax
from smke_jax.convert.int8 import quantised
from smke_jax.convert.params_file import PARAMS, TOKENIZER, load_params, read_description, save_params
from smke_jax.data.pipeline import pixels
from smke_jax.data.sources import open_prepared
from smke_jax.errors import UserError
from smke_jax.evaluators.recalls import retrieval_metrics
from smke_jax.studies.benchmarks import efficiency


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return [save_model(tmp_path_factory.mktemp(f"model{seed}"), seed) for seed in (0, 1)]


def scalars(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_sizes_are_those_of_what_each_side_depends_on(models):
    params = load_params(models[0])
    found = efficiency.open_model(models[0])
    types = params["type_embedding"].size // 2 * 2
    shared = scalars(params["shared"]) + scalars(params["type_scale"]) + types
    assert found.counts["image"] == scalars(params["image_encoder"]) + shared
    assert found.counts["text"] == scalars(params["text_encoder"]) + shared
    assert found.counts["both"] == scalars(params) - scalars(params["head"]) - scalars(params["head_norm"])
    sizes = found.sizes["both"]
    np.testing.assert_allclose([sizes["fp32"], sizes["fp16"]], found.counts["both"] / 2**20 * np.array([4, 2]))
    assert found.counts["both"] / 2**20 < sizes["int8"] < sizes["fp32"]


def test_the_tables(models, tmp_path):
    files = {f"{i}.jpg": made_up.jpeg(i) for i in range(6)} | {
        f"{i}.txt": f"a red dog {i}\nthe blue snow" for i in range(6)
    }
    made_up.prepare("folder", made_up.write(tmp_path / "photos", files), tmp_path / "data")
    out = tmp_path / "table.md"
    argv = [*map(str, models), "--batch_size=4", "--rounds=2", "--seconds=0.01", f"--out={out}"]
    argv += [f"--data={tmp_path / 'data'}", "--split=train"]
    assert efficiency.main(argv) == 0
    text = out.read_text()
    rows = [[x.strip() for x in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    names = [path.name for path in models]
    # The texts have 8 tokens, as many as the model reads.
    assert [row[:2] for row in rows if row[0].startswith(("images", "texts"))] == [
        ["images", "1"], ["images", "4"], ["texts of 8 tokens", "1"], ["texts of 8 tokens", "4"],
    ]  # fmt: skip
    assert all(row[2].endswith("× 1.00") for row in rows if row[0].startswith(("images", "texts")))
    recalls = {row[0]: [float(x) for x in row[2:]] for row in rows if row[1] == "6"}
    assert list(recalls) == names
    for name, path in zip(names, models, strict=True):
        metrics = expected_recalls(path, tmp_path / "data")
        sides = (metrics[way] for way in ("text_to_image", "image_to_text"))
        assert recalls[name] == [round(side[key], 2) for side in sides for key in ("r1", "r5", "r10")]
    assert f"    python -m smke_jax.studies.benchmarks.efficiency {' '.join(argv)}\n" in text


def expected_recalls(path, data):
    """Of embeddings of whole lists, with images and captions in the order of the folder."""
    source, model = open_prepared(data, "train"), smke_jax.load(path)
    captions = source.all_captions()
    images = model.encode_images([pixels(source[row]) for row in range(6)])
    texts = model.encode_texts([text for own in captions for text in own])
    return retrieval_metrics(images, texts, np.repeat(np.arange(6), 2), protocol="expected", bootstrap=0)


def test_an_int8_export_has_the_size_of_its_file(models, tmp_path):
    """Its weights are fp32 again in memory, and the share of the first model is that of what is kept."""
    first = efficiency.open_model(models[0])
    flat = flatten_dict(load_params(models[0]), sep="/")
    save_params(tmp_path / PARAMS, unflatten_dict(quantised(flat), sep="/"), read_description(models[0]))
    shutil.copytree(models[0] / TOKENIZER, tmp_path / TOKENIZER)
    small = efficiency.open_model(tmp_path)
    assert small.sizes["both"] == {"int8": pytest.approx(first.sizes["both"]["int8"])}
    share = first.sizes["both"]["int8"] / first.sizes["both"]["fp32"]
    last = efficiency.size_table({"first": first, "small": small}).splitlines()[-1]
    assert (
        last == f"| small | both | {small.counts['both']:,} |  |  | {small.sizes['both']['int8']:.1f} | {share:.1%} |"
    )


@pytest.mark.parametrize(
    "files, said",
    [
        (("image.onnx",), "has no text.onnx: write a model of both sides with `smke export --format=onnx`"),
        (("image.onnx", "text.onnx"), "has no tokenizer.json"),
        (("image.onnx", "text.onnx", "tokenizer.json", "preprocessor_config.json"), "is damaged .*: write it again"),
    ],
)
def test_graphs_that_are_not_whole_are_refused(tmp_path, files, said):
    pytest.importorskip("onnxruntime")
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=said):
        efficiency.open_model(tmp_path)


def test_one_side_alone_is_refused(tmp_path):
    folder = save_model(tmp_path)
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="does not embed both images and texts: give image-text models"):
        efficiency.open_model(folder)
