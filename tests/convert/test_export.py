"""A trained student leaves in every format, embeds there as here, and finds the same images and captions."""

import functools
import hashlib
import json
import re
import resource
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import tokenizers
import torch
from odd_pictures import odd_pictures
from PIL import Image
from safetensors import safe_open
from test_convert_student import Lightning, Thesis
from tiny_export import save_model
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedModel,
    pipeline,
)

import smke_jax
from smke_jax.__main__ import main
from smke_jax.convert.export import DTYPES, FORMATS, check, clients, flax, pytorch, thesis
from smke_jax.convert.export.base import Network, Record
from smke_jax.convert.export.write import write
from smke_jax.convert.params_file import load_params, params_path, read_description, save_params
from smke_jax.convert.temperatures import as_lists, by_level
from smke_jax.data.given import pixels_of
from smke_jax.data.tokenizer import load_tokenizer
from smke_jax.data.transforms import squash
from smke_jax.errors import UserError
from smke_jax.evaluators.recalls import retrieval_metrics
from smke_jax.models.build import build_model, param_shapes
from smke_jax.networks.codes import quantizer
from smke_jax.networks.start import student_start
from smke_jax.passes.base import to_network
from smke_jax.training.export import network_of
from smke_jax.training.restore import restore_run

pytestmark = pytest.mark.slow  # one run, exported many times

TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
FILES = {
    "flax": {"README.md", "params.safetensors", "tokenizer"},
    "hf": {
        "README.md",
        "config.json",
        "model.safetensors",
        "SHA256SUMS",
        "modeling_smke.py",
        "preprocessor_config.json",
        *TOKENIZER,
        "processor_config.json",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "clip_benchmark_adapter.py",
    },
    "thesis": {"README.md", "smke.ckpt", *TOKENIZER},
    "onnx": {
        "README.md",
        "image.onnx",
        "text.onnx",
        "preprocessor_config.json",
        *TOKENIZER,
        "config.json",
        "onnx",
    },
}


@pytest.fixture(scope="module")
def run(staged) -> Path:
    """Two steps of a student on two devices, evaluated after each."""
    return staged / "student"


@pytest.fixture(scope="module")
def trained(run):
    return restore_run(run)


@pytest.fixture(scope="module")
def network(trained):
    return network_of(trained)


@pytest.fixture(scope="module")
def embedded(run):
    """What the run itself makes of the gallery: its captions and its images, embedded."""
    images, captions, _ = gallery()
    model = smke_jax.load(run)
    return model.encode_texts(captions), model.encode_images(list(images))


@pytest.fixture(scope="module")
def samples(trained, network):
    return check.draw_samples(trained.experiment.task, ("dev",), network.description)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Format -> directory that the command wrote."""
    folder = tmp_path_factory.mktemp("exports")

    @functools.cache
    def export(format: str) -> Path:
        if format == "onnx":
            pytest.importorskip("onnxruntime")
        assert main(["export", f"--workdir={run}", f"--format={format}", f"--out={folder / format}"]) == 0
        return folder / format

    return export


def gallery():
    """Images, captions and each caption's image, of the split that the run was evaluated on."""
    source = tiny.TinySource("dev")
    captions = [caption for i in range(len(source)) for caption in source[i].captions]
    return source.images, captions, np.repeat(np.arange(len(source)), source.num_captions)


def thesis_module(network: Network) -> Thesis:
    """The author's module of the sizes of the run's student."""
    return Thesis(width=32, mlp=48, heads=2, depth=1, grid=2, patch=16, vocab=network.description["vocab_size"],
                  positions=512, target=32, types=True)  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_every_format(run, exported, capsys, format):
    directory = exported(format)
    assert {path.name for path in directory.iterdir()} == FILES[format]
    assert {path.name for path in directory.parent.iterdir()} <= set(FORMATS), "something is left over"
    assert all(path.stat().st_mode & 0o077 for path in directory.iterdir()), "others may read it"
    card = (directory / "README.md").read_text(encoding="utf-8")
    figures = json.loads((run / "evals/2/retrieval.json").read_text())
    assert figures["protocol"] in card and f"{figures['image_to_text']['r1']:.2f} [" in card
    assert "6 images of tiny dev with a caption each" in card and "| image_embeds | 1.0000000 | " in card
    for part in (
        "tiny-train", "2 steps of 8", "`target_itc`, bank_size 40", "learnable_scale True", "adamw",
        "`teacher`, frozen, start ", "by pairs",
    ):  # fmt: skip
        assert part in card, part
    assert "None were recorded" not in card and "not recorded" not in card
    capsys.readouterr()
    assert main(["export", f"--workdir={run}", f"--format={format}", f"--out={directory}"]) == 2
    assert f"{directory} is already there" in capsys.readouterr().err


def test_retrieval_in_pytorch_gives_the_figures_of_the_run(run, exported):
    directory = exported("hf")
    model = pytorch.import_modeling(directory / "modeling_smke.py").SmkeModel.from_directory(directory)
    tokenizer = BertTokenizerFast.from_pretrained(directory)
    images, captions, caption_image = gallery()
    tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        image = model(model.preprocess([Image.fromarray(x) for x in images]))["image_embeds"].numpy()
        text = model(**tokens)["text_embeds"].numpy()
    recorded = json.loads((run / "evals/2/retrieval.json").read_text())
    measured = retrieval_metrics(image, text, caption_image, protocol=recorded["protocol"])
    assert measured == recorded


def test_transformers_opens_it(exported, transformers_cache, tmp_path):
    directory = exported("hf")
    model = AutoModel.from_pretrained(directory, trust_remote_code=True)
    assert isinstance(model, PreTrainedModel) and not model.training
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(directory)
    _, captions, _ = gallery()
    picture = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    pixels = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(pixels, model.preprocess([Image.fromarray(picture)]), atol=1e-6)
    ours = to_network(squash(picture, 32)[None]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(pixels, ours, atol=1e-6)
    tokens = tokenizer([captions[0], "a dog " * 20], padding=True, truncation=True, return_tensors="pt")
    assert tokens["input_ids"].shape == (2, 8)  # max_length of the task
    outputs = model(pixel_values=pixels, **tokens)
    assert {name: x.shape for name, x in outputs.items()} == {
        "logits_per_image": (1, 2), "logits_per_text": (2, 1), "text_embeds": (2, 32), "image_embeds": (1, 32),
    }  # fmt: skip
    model.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True)
    for name, x in again.state_dict().items():
        torch.testing.assert_close(x, model.state_dict()[name], rtol=0, atol=0)


@pytest.fixture
def opened(exported, transformers_cache):
    """(directory, AutoModel, AutoProcessor) of an export."""
    directory = exported("hf")
    model = AutoModel.from_pretrained(directory, trust_remote_code=True, attn_implementation="sdpa")
    return directory, model, AutoProcessor.from_pretrained(directory, trust_remote_code=True)


def test_pictures_of_every_kind_are_what_they_are_in_the_library(opened):
    directory, model, processor = opened
    pictures, library = odd_pictures(), smke_jax.load(directory)
    expected = library.encode_images(pictures)
    with torch.inference_mode():
        own = model(model.preprocess(pictures)).image_embeds
        theirs = model.get_image_features(**processor(images=pictures, return_tensors="pt"))
    np.testing.assert_allclose(own, expected, atol=1e-5)
    np.testing.assert_allclose(theirs, expected, atol=1e-5)


def test_arrays_and_tensors_are_what_they_are_in_the_library(opened):
    _, model, processor = opened
    array = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    grey = array[:, :, 0]
    for given in (
        [array, array.transpose(2, 0, 1), torch.tensor(array), array / 255, torch.tensor(array / 255).permute(2, 0, 1)],
        [grey, grey[:, :, None], grey[None], np.stack([grey] * 3, axis=2)],
        np.stack([array, array]),
        array,
    ):
        pixels = processor(images=given, return_tensors="pt")["pixel_values"]
        expected = model.preprocess([Image.fromarray(pixels_of(x)) for x in (given if len(given) < 6 else [given])])
        torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)


def test_the_names_that_clients_of_clip_use(opened, network):
    directory, model, processor = opened
    _, captions, _ = gallery()
    texts = [captions[0], " ".join(captions)]  # the second is far too long
    inputs = processor(text=texts, images=odd_pictures()[:3], return_tensors="pt", padding=True, truncation=True)
    with torch.inference_mode():
        out, pair = model(**inputs), model(**inputs, return_dict=False)
        text = model.get_text_features(inputs["input_ids"], attention_mask=inputs["attention_mask"])
    np.testing.assert_allclose(text, smke_jax.load(directory).encode_texts(texts), atol=1e-5)
    torch.testing.assert_close(out.text_embeds, text)
    torch.testing.assert_close(out[0], pair[0])
    scale = np.exp(network.description["logit_scales"]["itc"]["out"])
    np.testing.assert_allclose(out.logits_per_image, scale * out.image_embeds @ text.T, rtol=1e-5)
    torch.testing.assert_close(out.logits_per_text, out.logits_per_image.T)
    assert float(model.logit_scale) == pytest.approx(np.log(scale))
    assert model.config.projection_dim == model.config.hidden_size == text.shape[1]
    assert model.config.max_position_embeddings == 8 and model.config._attn_implementation == "sdpa"


def test_zero_shot_classification_of_transformers(opened):
    directory, model, processor = opened
    pipe = pipeline("zero-shot-image-classification", model=str(directory), trust_remote_code=True)
    labels = ["red dog", "small cat", "a small cat over a red dog " * 90]  # the pipeline asks for no truncation
    found = {x["label"]: x["score"] for x in pipe(odd_pictures()[0], labels, hypothesis_template="{}")}
    library = smke_jax.load(directory)
    logits = float(model.logit_scale.exp()) * library.similarity(odd_pictures()[:1], labels)[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([found[label] for label in labels], expected, atol=1e-5)


def test_sentence_transformers_embeds_texts_and_pictures(exported):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    directory = exported("hf")
    model = sentence_transformers.SentenceTransformer(str(directory), trust_remote_code=True)
    library = smke_jax.load(directory)
    texts = ["red dog", "a small cat " * 40]
    np.testing.assert_allclose(model.encode(texts), library.encode_texts(texts), atol=1e-5)
    np.testing.assert_allclose(model.encode(odd_pictures()[:2]), library.encode_images(odd_pictures()[:2]), atol=1e-5)


def test_a_long_caption_by_the_example_of_the_card(exported):
    directory = exported("hf")
    modeling = pytorch.import_modeling(directory / "modeling_smke.py")
    text = "a small blue bird sits under the big green cat over dog cat bird runs sits " * 60
    encoding = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text)
    with torch.inference_mode():
        found = modeling.SmkeModel.from_directory(directory)(input_ids=torch.tensor([encoding.ids]))["text_embeds"]
    np.testing.assert_allclose(found, smke_jax.load(directory).encode_texts([text]), atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_every_snippet_of_the_card_runs(run, exported, network, format, transformers_cache, monkeypatch, tmp_path):
    directory = exported(format)
    card = (directory / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    folder = shutil.copytree(directory, tmp_path / "copy")
    odd_pictures()[0].convert("RGB").save(folder / "photo.jpg")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    given = {"torch": torch, "model": thesis_module(network)} if format == "thesis" else {}
    for snippet in snippets:
        names = dict(given)
        exec(snippet.replace('"DIR"', '"."'), names)
    if format == "onnx":  # the last one is for a photo
        np.testing.assert_allclose(names["embedding"][0], smke_jax.load(run).encode_images("photo.jpg"), atol=1e-5)
    sys.modules.pop("modeling_smke", None)
    assert len(snippets) == {"hf": 2, "onnx": 2}.get(format, 1)


def test_the_names_of_transformers_js(exported, network):
    directory = exported("onnx")
    config = json.loads((directory / "config.json").read_text())
    assert (config["model_type"], config["max_length"], config["projection_dim"]) == ("clip", 8, 32)
    for name, own in (("text_model", "text.onnx"), ("vision_model", "image.onnx")):
        assert (directory / "onnx" / f"{name}.onnx").samefile(directory / own)


def test_a_long_caption_in_onnx(exported):
    import onnxruntime

    directory = exported("onnx")
    text = "a small blue bird sits under the big green cat over dog cat bird runs sits " * 60
    encoding = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text)
    session = onnxruntime.InferenceSession(directory / "text.onnx")
    inputs = {"input_ids": np.array([encoding.ids]), "attention_mask": np.array([encoding.attention_mask])}
    (found,) = session.run(["text_embeds"], inputs)
    np.testing.assert_allclose(found, smke_jax.load(exported("hf")).encode_texts([text]), atol=1e-5)


def test_pytorch_alone_opens_it(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    directory = exported("hf")
    modeling = pytorch.import_modeling(directory / "modeling_smke.py")
    assert modeling.PreTrainedModel.__module__ == "modeling_smke"
    model = modeling.SmkeModel.from_directory(directory)
    outputs = model(input_ids=torch.tensor([[2, 7, 3]]))
    text = outputs["text_embeds"]
    assert outputs.image_embeds is None and outputs[0] is outputs.text_embeds and list(outputs) == ["text_embeds"]
    assert text.norm().item() == pytest.approx(1)
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"} and set(file.keys()) == set(model.state_dict())
    digest, name = (directory / "SHA256SUMS").read_text().split()
    assert digest == hashlib.sha256((directory / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("format", sorted(FORMATS.keys() - {"onnx"}))
def test_three_lines_open_it(embedded, exported, format):
    images, captions, _ = gallery()
    model, (text, image) = smke_jax.load(exported(format)), embedded
    np.testing.assert_allclose(model.encode_texts(captions), text, atol=1e-6)
    np.testing.assert_allclose(model.encode_images(list(images)), image, atol=1e-6)


def test_what_converts_back(exported, network, tmp_path):
    for format, file in (("hf", ""), ("thesis", "smke.ckpt")):
        out = tmp_path / format
        assert main(["convert", f"--checkpoint={exported(format) / file}", f"--out={out}"]) == 0
        jax.tree.map(np.testing.assert_array_equal, load_params(out), network.params)
        back, description = read_description(out)["model"], network.description
        assert {k: back[k] for k in ("level", "max_length", "vocab_size", "logit_scales")} == {
            k: description[k] for k in ("level", "max_length", "vocab_size", "logit_scales")
        }
        assert (out / "tokenizer/vocab.txt").read_bytes() == (exported(format) / "vocab.txt").read_bytes()


def test_the_thesis_modules_take_the_checkpoint(exported, network, samples):
    checkpoint = torch.load(exported("thesis") / "smke.ckpt", weights_only=True)
    d = network.description
    module = Lightning(thesis_module(network)).eval()
    module.load_state_dict(checkpoint["state_dict"], strict=True)
    assert module.model.logit_scales.tolist() == [d["logit_scales"]["itc"][level] for level in ("fc1", "out")]
    assert module.logit_scale_target.item() == d["logit_scales"]["target_itc"]["head"]
    batch = check.make_batch(samples, network.tokenizer, 8)
    pixels = torch.tensor(
        np.asarray(to_network(np.stack([squash(x, 32) for x in batch["image"]]))).transpose(0, 3, 1, 2)
    )
    *_, image_out, _, _, text_out, _ = module.model(
        pixels, torch.tensor(batch["text"], dtype=torch.int64), torch.tensor(batch["text_mask"])
    )
    reps = check.embed(d, network.params, batch)
    likeness = check.compare(reps, {"image/out": image_out, "text/out": text_out})
    assert all(x.delta < 1e-5 for x in likeness.values()), likeness


def test_graphs_take_other_batches_and_lengths(exported, network):
    onnxruntime = pytest.importorskip("onnxruntime")
    directory = exported("onnx")
    graphs = {name: onnxruntime.InferenceSession(directory / f"{name}.onnx") for name in ("image", "text")}
    _, end = network.tokenizer.marks()
    for count, length in ((1, 3), (5, 11)):
        pixels = np.random.default_rng(count).normal(size=(count, 3, 32, 32)).astype(np.float32)
        ids = np.random.default_rng(length).integers(5, network.description["vocab_size"], (count, length))
        mask = (np.arange(length) < length - 1).astype(np.int64) * np.ones((count, 1), np.int64)
        ids[:, length - 2] = end  # the last token of a text, which stays where the model cuts
        (image,) = graphs["image"].run(["image_embeds"], {"pixel_values": pixels})
        (text,) = graphs["text"].run(["text_embeds"], {"input_ids": ids, "attention_mask": mask})
        module = pytorch.build(network.params, network.description)
        with torch.inference_mode():
            outputs = module(*map(torch.tensor, (pixels, ids, mask)))
        np.testing.assert_allclose(image, outputs["image_embeds"], atol=1e-5)
        np.testing.assert_allclose(text, outputs["text_embeds"], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("format", FORMATS)
def test_16_bits(network, samples, tmp_path, format, dtype):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    if (format, dtype) == ("onnx", "bfloat16"):
        with pytest.raises(UserError, match="float32 or float16"):
            write(tmp_path / "x", network, samples, format=format, dtype=dtype)
        assert not list(tmp_path.iterdir())
        return
    likeness = write(tmp_path / "x", network, samples, format=format, dtype=dtype)
    assert all(check.BARS[dtype] <= x.cosine and x.delta > 0 for x in likeness.values())
    assert f"allowed is a cosine of {check.BARS[dtype]} with {dtype} weights" in (tmp_path / "x/README.md").read_text()
    for file, framework in (("model.safetensors", "pt"), ("params.safetensors", "numpy")):
        if (tmp_path / "x" / file).is_file():
            with safe_open(tmp_path / "x" / file, framework) as weights:
                assert {str(weights.get_tensor(key).dtype).removeprefix("torch.") for key in weights.keys()} == {dtype}


def test_every_precision_has_a_bar():
    assert set(check.BARS) == set(DTYPES)


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk(network, samples, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(UserError, match=r"x cannot be written \(File too large\): make room or change --out"):
            write(tmp_path / "x", network, samples, format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spoil", [lambda x: -x, lambda x: x * np.nan], ids=["turned", "NaN"])
def test_what_embeds_otherwise_is_not_written(network, samples, tmp_path, monkeypatch, spoil):
    form = flax.FORMAT

    def embed(directory, batch):
        reps = form.embed(directory, batch)
        return reps | {"text/out": spoil(reps["text/out"])}

    monkeypatch.setattr(flax, "FORMAT", form._replace(embed=embed))
    with pytest.raises(UserError, match="was not written: it would not embed as") as error:
        write(tmp_path / "x", network, samples, format="flax")
    assert "| text/out | " in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_decodes_pictures_otherwise_is_not_written(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    model = save_model(tmp_path / "model")
    description = read_description(params_path(model))["model"] | {"logit_scales": {}}
    network = Network(load_params(model), description, load_tokenizer(model / "tokenizer"), Record({}, {}, 0))
    text, turn = pytorch.SOURCE.read_text(encoding="utf-8"), "image = ImageOps.exif_transpose(image)"
    assert turn in text
    (tmp_path / pytorch.MODELING).write_text(text.replace(turn, "pass"), encoding="utf-8")
    shutil.copy(pytorch.SOURCE.parent / clients.ADAPTER, tmp_path)
    monkeypatch.setattr(pytorch, "SOURCE", tmp_path / pytorch.MODELING)
    with pytest.raises(UserError, match="was not written: it would not embed as"):
        write(tmp_path / "x", network, check.draw_samples(None, (), description), format="hf")


def test_a_run_whose_data_is_gone(trained):
    task, encoder = trained.experiment.task, {"type": "beit", "image_size": 24}
    gone = check.draw_samples(task, ("lost",), encoder)
    assert np.shape(gone.arrays["image"]) == (8, 24, 24, 3) and "as the data is gone" in gone.origin
    np.testing.assert_array_equal(gone.arrays["image"], check.draw_samples(task, (), encoder).arrays["image"])
    train = check.draw_samples(task, ("lost", "train"), encoder)
    assert len(train.arrays["image"]) == 8 and train.origin.startswith("8 images of tiny train")
    source = tiny.TinySource("train")
    np.testing.assert_array_equal(train.arrays["image"][7], source[7].image)
    assert list(train.captions) == [source[i].captions[0] for i in range(8)]


def test_the_original_is_computed_in_fp32(network, samples):
    batch = check.make_batch(samples, network.tokenizer, 8)
    trained_in_bf16 = network.description | {"dtype": "bfloat16"}
    a, b = (check.embed(d, network.params, batch) for d in (network.description, trained_in_bf16))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("package", ["torch", "onnxruntime"])
def test_a_missing_package_is_named(network, samples, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"this format needs {package}: pip install 'smke_jax\[onnx\]'"):
        write(tmp_path / "x", network, samples, format="onnx")


def test_a_student_that_the_thesis_does_not_know(network, samples, tmp_path):
    text = network.description["text"] | {"norm_order": "pre"}
    with pytest.raises(UserError, match=r"the student's text\.norm_order is 'pre'"):
        thesis.FORMAT.write(tmp_path, network._replace(description=network.description | {"text": text}), "float32")


# ---- what is no student


FIGURES = {"scene_probe": {"protocol": "ridge probe", "auc": {"shape": 0.625}, "effective_rank": 12.5}}


def record_of(network: Network, **changes) -> Record:
    return network.record._replace(**changes)


def test_a_quantizer_goes_out_for_jax_and_comes_back(network, tmp_path):
    description = {"type": "quantizer", "num_codes": 12, "code_dim": 4, "width": 8}
    module = build_model(description)
    params = jax.device_get(module.init(jax.random.key(0), np.ones((1, 8), np.float32))["params"])
    codes = Network(params, description, None, record_of(network, figures=FIGURES))
    samples = check.draw_samples(None, (), description)
    for dtype in DTYPES:
        likeness = write(tmp_path / dtype, codes, samples, format="flax", dtype=dtype)
        assert set(likeness) == {"latent", "codes"} and all(x.cosine >= check.BARS[dtype] for x in likeness.values())
    card = (tmp_path / "float32/README.md").read_text(encoding="utf-8")
    assert "# Codebook of images" in card and "12 codes of 4 channels" in card and "64 random vectors" in card
    assert "`scene_probe`: ridge probe" in card and "| `auc/shape` | 0.625 |" in card
    with pytest.raises(UserError, match="of type quantizer, and --format=hf is for models of type student"):
        write(tmp_path / "x", codes, samples, format="hf")

    identity = {"teacher weights": "a", "teacher form": "final_norm=True"}
    source = codes.record.run | {"identity": {"data": "d", **identity}}
    write(tmp_path / "again", codes._replace(record=record_of(network, run=source)), samples, format="flax")
    borrowed = quantizer(start=str(tmp_path / "again"), num_codes=12, code_dim=4)
    start = borrowed.start(param_shapes(description))
    jax.tree.map(np.testing.assert_array_equal, start.params, params)
    assert start.expects_of == {"target/cls": {"weights": "a", "form": "final_norm=True"}}
    with pytest.raises(UserError, match="code_dim is 5 and was 4"):
        quantizer(start=str(tmp_path / "again"), num_codes=12, code_dim=5).start(param_shapes(description))


def test_an_export_with_lists_of_temperatures_still_starts_a_student(exported, network, tmp_path):
    path = params_path(exported("flax"))
    description = read_description(path)
    expected = description["model"]["logit_scales"]
    lists = {"itc": [expected["itc"]["fc1"], expected["itc"]["out"]], "target_itc": [expected["target_itc"]["head"]]}
    model = {**description["model"], "logit_scales": lists}
    model |= {part: {k: v for k, v in model[part].items() if k != "type"} for part in ("image", "text", "shared")}
    save_params(tmp_path / "params.safetensors", load_params(path), {**description, "model": model})
    start = student_start(str(tmp_path), network.params, network.description)
    assert start.terms == {term: {"logit_scale": values} for term, values in expected.items()}
    jax.tree.map(np.testing.assert_array_equal, start.params, network.params)


def test_temperatures_by_level_and_as_lists():
    scales = {"itc": {"fc1": 1.0, "out": 2.0}, "all": {"out": 2.0, "fc1": 1.0, "head": 3.0},
              "target_itc": {"head": 4.0}, "proximal_itc": {"out": 5.0}, "cmli": {"tokens": 6.0}}  # fmt: skip
    lists = {"itc": [1.0, 2.0], "all": [1.0, 2.0, 3.0], "target_itc": [4.0], "proximal_itc": [5.0], "cmli": [6.0]}
    assert as_lists(scales) == lists
    assert by_level(lists) == by_level(scales) == scales
