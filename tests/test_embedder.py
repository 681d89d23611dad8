"""smke_jax.load: the same embeddings as evaluation's, from every kind of directory and every kind of input."""

import io
import operator
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import smke_jax
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.params_file import PARAMS, TOKENIZER, save_params
from smke_jax.convert.rules import to_torch
from smke_jax.data.decode import decode_image
from smke_jax.data.given import pixels_of
from smke_jax.data.progress import Progress
from smke_jax.embedder import Embedder, _length
from smke_jax.errors import UserError
from smke_jax.models.build import build_model, param_shapes
from smke_jax.parallel.mesh import divisible
from smke_jax.passes.base import MEAN, STD
from smke_jax.training.restore import exported, restore_run

TEXTS = ["red dog", "a small blue bird sits under the big green cat over dog cat bird runs sits", "cat"]


@pytest.fixture(scope="module")
def run(staged):
    return staged / "student"


@pytest.fixture(scope="module")
def trained(run):
    return restore_run(run)


@pytest.fixture(scope="module")
def model(run):
    return smke_jax.load(run)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + i, 30, 3), dtype=np.uint8) for i in range(5)]


def test_embeddings_are_the_students_own(trained, model, pictures):
    student, params = build_model(model.description), trained.params["student"]
    ids, mask = trained.experiment.task.tokenizer.encode(TEXTS, 8)
    expected = student.apply({"params": params}, ids, mask, method="encode_text")["out"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode_texts(TEXTS), expected, atol=1e-5)

    size = model.description["image"]["image_size"]
    pixels = np.stack([np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC)) for x in pictures])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    network = ((pixels / 255 - mean) / std).astype(np.float32)
    expected = student.apply({"params": params}, network, method="encode_image")["out"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    actual = model.encode_images(pictures, batch_size=2)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_allclose(model.similarity(pictures, TEXTS), expected @ model.encode_texts(TEXTS).T, atol=1e-5)
    np.testing.assert_allclose(model.similarity(actual, TEXTS), model.similarity(pictures, TEXTS), atol=1e-6)


def test_paths_pictures_and_arrays_are_the_same(model, pictures, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(pictures[0]).save(path)
    embeddings = model.encode_images([path, str(path), Image.open(path), pictures[0]])
    np.testing.assert_allclose(embeddings, embeddings[:1].repeat(4, axis=0), atol=1e-6)


def test_a_large_jpeg_is_decoded_small_and_means_the_same(model, monkeypatch):
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((960, 720), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    large.save(file, "JPEG", quality=95)
    seen = []

    def watched(*arguments, **more):
        seen.append(pixels_of(*arguments, **more))
        return seen[-1]

    monkeypatch.setattr(smke_jax.embedder, "pixels_of", watched)
    small, whole = model.encode_images([file.getvalue(), decode_image(file.getvalue())])
    few, many = sorted(seen, key=np.size)
    assert min(few.shape[:2]) >= 2 * max(model.image_sizes.values()) and few.size < many.size / 15
    assert small @ whole > 0.9999


def test_every_form_of_a_picture_is_the_same(model, pictures, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.png"
    Image.fromarray(pictures[0]).save(path)
    array, data = pictures[0], path.read_bytes()
    with open(path, "rb") as file:
        given = [
            str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file, array, array.transpose(2, 0, 1),
            array / 255, torch.tensor(array), torch.tensor(array).permute(2, 0, 1), torch.tensor(array / 255.0).float(),
            np.concatenate([array, np.full_like(array[:, :, :1], 255)], axis=2), Image.open(path),
        ]  # fmt: skip
        embeddings = model.encode_images(given)
    np.testing.assert_allclose(embeddings, embeddings[:1].repeat(len(given), axis=0), atol=1e-6)
    grey = array[:, :, 0]
    same = model.encode_images([grey, grey[:, :, None], np.repeat(grey[:, :, None], 3, axis=2)])
    np.testing.assert_allclose(same, same[:1].repeat(3, axis=0), atol=1e-6)


def test_one_at_a_time_or_a_stream(model, pictures):
    images, texts = model.encode_images(pictures), model.encode_texts(TEXTS)
    for x in (images, texts):
        assert x.dtype == np.float32 and x.flags.c_contiguous
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)
    one = model.encode_images(pictures[1])
    assert one.shape == images[1].shape
    np.testing.assert_allclose(one, images[1], atol=1e-6)
    np.testing.assert_allclose(model.encode_texts(TEXTS[1]), texts[1], atol=1e-6)
    np.testing.assert_allclose(model.encode_images(x for x in pictures), images, atol=1e-6)
    np.testing.assert_allclose(model.encode_texts((x for x in TEXTS), batch_size=2), texts, atol=1e-6)
    equal = np.stack([x[:40] for x in pictures])
    np.testing.assert_allclose(model.encode_images(equal), model.encode_images(list(equal)), atol=1e-6)


def test_a_stream_is_not_held(model, pictures):
    alive = []

    def stream():
        for number in range(12):
            alive.append(number)
            yield pictures[0]

    most = []
    run = model._run
    model._run = lambda *a: most.append(len(alive)) or run(*a)
    try:
        model.encode_images(stream(), batch_size=2)
    finally:
        del model._run
    assert most == [4, 6, 8, 10, 12, 12]


def test_batches_of_a_stream_are_those_of_the_whole(model, pictures):
    given = [pictures[0], b"x", pictures[1], b"y", b"z", pictures[2]]
    found = list(model.image_batches(iter(given), batch_size=2))
    assert [len(x.embeddings) for x in found] == [1, 1, 1]
    assert [[s.position for s in x.skipped] for x in found] == [[1], [3], [4]]
    expected = model.encode_images(pictures[:3])
    np.testing.assert_allclose(np.concatenate([x.embeddings for x in found]), expected, atol=1e-6)
    (none,) = model.image_batches([b"x"])
    assert len(none.embeddings) == 0 and len(none.skipped) == 1
    assert list(model.image_batches([])) == []


def test_bad_items_are_skipped_with_their_positions(model, pictures, capsys):
    found = model.encode_images([pictures[0], b"x", pictures[1], None, pictures[2]], on_error="skip", batch_size=2)
    np.testing.assert_allclose(found.embeddings, model.encode_images(pictures[:3]), atol=1e-6)
    assert [(s.position, s.reason.split(":")[0]) for s in found.skipped] == [
        (1, "not an image file"), (3, "a NoneType is no picture"),
    ]  # fmt: skip
    embeddings, skipped = model.encode_texts([None, "dog"], on_error="skip")
    assert len(embeddings) == 1 and skipped[0].position == 0
    with pytest.raises(UserError, match="not one of 2 can be read; the first: a NoneType is no text"):
        model.encode_texts([None, None], on_error="skip")
    assert not capsys.readouterr().err


def test_progress_of_many(model, pictures, capsys, monkeypatch):
    monkeypatch.setattr(Progress.__init__, "__kwdefaults__", {"every": 0})
    model.encode_images(pictures, batch_size=2, progress=True)
    assert "embedding images: 4/5" in capsys.readouterr().err
    model.encode_texts(["dog"], progress=True)
    assert "embedding texts: 1/1" in capsys.readouterr().err
    model.encode_images(pictures, batch_size=2)
    model.encode_texts(["dog"])
    captured = capsys.readouterr()
    assert not captured.err and not captured.out


def test_a_query_is_not_filled_up_to_a_whole_batch(model, monkeypatch):
    shapes, program = [], model._networks._programs["text"]

    def noted(params, arrays):
        shapes.append(arrays["text"].shape)
        return program(params, arrays)

    monkeypatch.setitem(model._networks._programs, "text", noted)
    for count in (1, 3, 64, 70):
        model.encode_texts(["dog"] * count)
    assert [rows for rows, _ in shapes] == [divisible(n, model._networks.mesh) for n in (1, 4, 64, 64, 8)]


def test_texts_of_any_lengths_come_back_in_their_order(model):
    texts = ["a red dog runs over the blue snow and more", "dog", "red dog", "a red dog", "snow", "the dog runs", ""]
    together = model.encode_texts(texts, batch_size=2)
    np.testing.assert_allclose(together, [model.encode_texts(text) for text in texts], atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_texts_are_padded_to_few_lengths():
    assert [_length(x) for x in (1, 8, 9, 12, 13, 16, 17, 25, 33, 50)] == [8, 8, 12, 12, 16, 16, 24, 32, 48, 64]


def test_an_export_is_the_run(trained, model, pictures, tmp_path):
    params, description = exported(trained)
    save_params(tmp_path / PARAMS, jax.device_get(params), {"model": description})
    trained.experiment.task.tokenizer.save(tmp_path / TOKENIZER)
    again = smke_jax.load(tmp_path)
    assert smke_jax.load(tmp_path / PARAMS).tokenizer.digest == again.tokenizer.digest
    with pytest.raises(UserError, match="says itself what model it holds: leave num_heads out"):
        smke_jax.load(tmp_path, num_heads=2)
    assert again.digest == model.digest
    other = jax.tree.map(lambda x: x + 1e-3, params)
    assert Embedder(description, other, model.tokenizer).digest != model.digest
    np.testing.assert_array_equal(again.encode_images(pictures), model.encode_images(pictures))
    np.testing.assert_array_equal(again.encode_texts(TEXTS), model.encode_texts(TEXTS))


def test_a_teacher_gives_its_feature_of_the_centre():
    fields = {"image_size": 32, "patch_size": 16, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}
    description = {"type": "beit", **fields, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    module = build_model(description)
    params = module.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
    black = np.zeros((32, 10, 3), np.uint8)
    centre = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    wide = np.concatenate([black, centre, black], axis=1)
    teacher = Embedder(description, params)
    assert not teacher.reads_texts
    expected = module.apply({"params": params}, ((centre[None] / 255 - 0.5) / 0.25).astype(np.float32))
    np.testing.assert_allclose(teacher.encode_images([wide]), expected, atol=1e-5)
    with pytest.raises(UserError, match="a model of type beit embeds no texts"):
        teacher.encode_texts(["dog"])


def test_a_text_encoder_gives_the_mean_of_its_tokens(trained):
    tokenizer = trained.experiment.task.tokenizer
    fields = {"vocab_size": tokenizer.vocab_size, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}
    description = {"type": "bert", **fields, "max_positions": 32, "pooler": False}
    module = build_model(description)
    ids, mask = tokenizer.encode(TEXTS, 32)
    params = module.init(jax.random.key(0), ids, mask)["params"]
    tokens = np.asarray(module.apply({"params": params}, ids, mask)[0])
    expected = [row[: m.sum()].mean(axis=0) for row, m in zip(tokens, mask, strict=True)]
    encoder = Embedder(description, params, tokenizer)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=1e-5)
    with pytest.raises(UserError, match="a model of type bert embeds no images"):
        encoder.encode_images(["a.png"])
    with pytest.raises(UserError, match="came without its vocabulary: put vocab.txt or tokenizer.json beside"):
        Embedder(description, params).encode_texts(TEXTS)


def test_a_clip_without_vocabulary_is_told_what_it_reads():
    tower = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}
    image, text = {"image_size": 32, "patch_size": 16, **tower}, {"vocab_size": 20, "max_positions": 6, **tower}
    description = {"type": "clip", "embed_dim": 4, "mean": MEAN, "std": STD, "image": image, "text": text}
    with pytest.raises(UserError, match=r"put tokenizer\.json, or vocab\.json and merges\.txt beside its file"):
        Embedder(description, {}).encode_texts(["dog"])


def test_what_a_file_from_elsewhere_does_not_say(tmp_path):
    torch = pytest.importorskip("torch")
    fields = {"vocab_size": 20, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16, "max_positions": 6}
    description = {"type": "bert", **fields, "pooler": False}
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), param_shapes(description))
    state = {name: torch.tensor(x) for name, x in to_torch(LAYOUTS["bert"], params, description).items()}
    path = tmp_path / "bert.pt"
    torch.save({"state_dict": state, "progress": operator.attrgetter("x")}, path)
    with pytest.raises(UserError, match=r"contains code \(operator\.attrgetter\), which was not run"):
        smke_jax.load(path)
    with pytest.raises(UserError, match="number of attention heads"):
        smke_jax.load(path, trust_code=True)
    assert smke_jax.load(path, trust_code=True, num_heads=2).description["num_heads"] == 2


def test_what_cannot_be_embedded_is_named(model, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    picture = Image.new("RGB", (4, 4))
    for images, message in [
        ([tmp_path / "none.jpg"], r"image 0 \(.*none.jpg\) cannot be read: there is no such file"),
        ([picture, broken], r"image 1 \(.*broken.jpg\) cannot be read: not an image file; on_error='skip'"),
        (str(broken), r"the image \(.*broken.jpg\) cannot be read: not an image file$"),
        ([tmp_path], "cannot be read: Is a directory"),
        ([b"no picture"], "image 0 cannot be read: not an image file"),
        (["\0"], "no file can have this name"),
        ([np.zeros((5, 5, 2), np.uint8)], r"array is uint8 \(5, 5, 2\): give 1, 3 or 4 channels"),
        ([np.full((4, 4, 3), 1.5)], r"float64 \(4, 4, 3\) outside of \[0, 1\]"),
        ([np.zeros((4, 4, 3), np.int64)], "give uint8, or floats"),
        ([np.zeros((4, 0, 3), np.uint8)], r"give \(H, W, 3\)"),
        ([io.StringIO("x")], "open it with mode 'rb'"),
        ([None], "a NoneType is no picture"),
        (5, "a int holds no images"),
        ([], "the list is empty"),
        (iter(()), "the list is empty"),
    ]:
        with pytest.raises(UserError, match=message):
            model.encode_images(images)
    for texts, message in [
        (["dog", None], "text 1 cannot be read: a NoneType is no text"),
        (["dog", float("nan")], "text 1 cannot be read: a float is no text"),
        (["dog", "a \ud83d"], "text 1 cannot be read: character 2 is half a surrogate pair"),
        ([b"dog"], "a bytes is no text"),
        (7, "a int holds no texts"),
        ([], "the list is empty"),
    ]:
        with pytest.raises(UserError, match=message):
            model.encode_texts(texts)
    with pytest.raises(UserError, match="on_error='ignore': give 'raise' or 'skip'"):
        model.encode_texts(TEXTS, on_error="ignore")
    with pytest.raises(UserError, match="batch_size=0"):
        model.encode_texts(TEXTS, batch_size=0)
    with pytest.raises(UserError, match="no file"):
        smke_jax.load(tmp_path / "nothing")


def test_graphs_are_not_read_back(tmp_path):
    (tmp_path / "image.onnx").touch()
    with pytest.raises(UserError, match="graphs of ONNX are not read back: export the run again as hf or flax"):
        smke_jax.load(tmp_path)


def test_importing_the_package_alone_is_cheap():
    code = "import sys, smke_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
