"""A text encoder by itself: it begins with its file, pools tokens, is cut to its first layers, and is evaluated."""

import re

import jax
import numpy as np
import pytest

from smke_jax.convert.params_file import PARAMS, save_params
from smke_jax.errors import UserError
from smke_jax.models.build import build_model
from smke_jax.networks.frozen import frozen
from smke_jax.networks.text_tower import text_tower
from smke_jax.parts import part

MODEL = {
    "type": "bert", "vocab_size": 20, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 8, "max_positions": 9,
    "type_vocab_size": 2, "pooler": False,
}  # fmt: skip
IDS = np.random.default_rng(0).integers(1, 20, (3, 6)).astype(np.int32)
MASK = (np.arange(6) < np.array([6, 4, 2])[:, None]).astype(np.int32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(directory, parameters) of a converted BERT."""
    folder = tmp_path_factory.mktemp("weights") / "bert"
    folder.mkdir()
    params = build_model(MODEL).init(jax.random.key(1), IDS, MASK)["params"]
    save_params(folder / PARAMS, params, {"model": MODEL, "source": {"layout": "bert", "file": "x", "sha256": "1"}})
    return folder, params


def feature(network, params, train=False, key=None):
    (p,) = network.forward("words", {})
    return np.asarray(p.run({"words": params}, {"text": IDS, "text_mask": MASK}, key, train)["words/feature"])


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_it_is_the_encoder_of_its_file(weights, pool):
    folder, params = weights
    network = text_tower(vocab_size=20, start=str(folder), pool=pool, dropout=0.5)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), {}))
    start = network.start(shapes)
    tokens = np.asarray(build_model(MODEL).apply({"params": params}, IDS, MASK)[0])
    expected = tokens[:, 0] if pool == "cls" else [row[: mask.sum()].mean(0) for row, mask in zip(tokens, MASK)]
    np.testing.assert_allclose(feature(network, start.params), expected, atol=1e-5)
    dropped = [feature(network, start.params, True, jax.random.key(i)) for i in (0, 1)]
    assert np.abs(dropped[0] - dropped[1]).max() > 1e-3
    assert network.described["width"] == 16 and network.trained is True


def test_only_the_layers_behind_the_frozen_ones_are_trained(weights):
    folder, params = weights
    (regex,) = text_tower(vocab_size=20, start=str(folder), frozen_layers=1).trained
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]
    trained = {path for path in paths if re.search(regex, path)}
    assert trained == {path for path in paths if path.startswith("block_1/")} and len(trained) == 16
    for fields, said in (
        ({"frozen_layers": 2}, "frozen_layers is 2 of 2 layers: give 0 to 1, or trained=False"),
        ({"frozen_layers": 1, "trained": False}, "trained=False freezes all layers: leave frozen_layers out"),
    ):
        with pytest.raises(UserError, match=said):
            text_tower(vocab_size=20, start=str(folder), **fields)


CLIP = {
    "type": "clip", "embed_dim": 5, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
    "image": {"image_size": 8, "patch_size": 4, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 6},
    "text": {"vocab_size": 20, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 6, "max_positions": 9},
}  # fmt: skip


def test_both_towers_of_a_clip_are_those_of_its_file(tmp_path):
    """Before their projections: the end of text, which is the last token of the mask, and [CLS] of the image."""
    clip, ids = build_model(CLIP), IDS.copy()
    ids[np.arange(3), MASK.sum(1) - 1] = 19
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    params = clip.init(jax.random.key(2), pixels.astype(np.float32), ids)["params"]
    save_params(tmp_path / PARAMS, params, {"model": CLIP})
    normalised = (pixels / 255 - np.array(CLIP["mean"])) / np.array(CLIP["std"])
    image, text = clip.apply({"params": params}, normalised.astype(np.float32), ids)

    network = text_tower(vocab_size=20, start=str(tmp_path), pool="cls")
    start = network.start(jax.eval_shape(lambda: network.init(jax.random.key(0), {})))
    (p,) = network.forward("words", {})
    found = p.run({"words": start.params}, {"text": ids, "text_mask": MASK}, None, False)["words/feature"]
    np.testing.assert_allclose(found @ params["text_projection"]["kernel"], text, atol=1e-5)

    network = frozen(start=str(tmp_path))
    start = network.start(jax.eval_shape(lambda: network.init(jax.random.key(0), {})))
    (p,) = network.forward("teacher", {"image": None})
    found = p.run({"teacher": start.params}, {"image": pixels}, None, False)["target/cls"]
    np.testing.assert_allclose(found @ params["image_projection"]["kernel"], image, atol=1e-5)


def test_its_first_layers_are_enough(weights):
    folder, _ = weights
    network = text_tower(vocab_size=20, start=str(folder), depth=1, trained=False)
    start = network.start(jax.eval_shape(lambda: network.init(jax.random.key(0), {})))
    assert "block_0" in start.params and "block_1" not in start.params and network.trained is False


def test_it_is_opened_where_its_file_is_gone(weights):
    network = text_tower(vocab_size=20, start="gone", described=MODEL)
    assert network.init(jax.random.key(0), {})["word_embedding"].shape == (20, 16)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"pool": "max"}, "pool 'max' is neither mean nor cls"),
        ({"depth": 3}, "has 2 layers: set depth to 2 or less"),
        ({"start": ""}, "the text tower's start is empty"),
        ({"start": "random"}, "a text tower of random weights needs a model"),
    ],
)
def test_mistakes_are_named(weights, fields, said):
    with pytest.raises(UserError, match=said):
        text_tower(**{"vocab_size": 20, "start": str(weights[0]), **fields})


def test_another_vocabulary_is_refused(weights):
    network = text_tower(vocab_size=21, start=str(weights[0]))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), {}))
    with pytest.raises(UserError, match="20 words and the tokenizer 21: set config.task.tokenizer"):
        network.start(shapes)


def test_fields_that_the_file_contradicts_are_refused(weights):
    start = str(weights[0])
    with pytest.raises(UserError, match="model.num_heads is 4, and .* says 2: leave it out"):
        text_tower(vocab_size=20, start=start, model=part("bert", num_heads=4))
    with pytest.raises(UserError, match="model.dropout: set the dropout of the text tower itself"):
        text_tower(vocab_size=20, start="random", model=part("bert", dropout=0.1))
