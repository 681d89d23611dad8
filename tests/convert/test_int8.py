"""Weights of 8 bits: the error is at most half a step of each channel, and a file of them is read as any other."""

import numpy as np

from smke_jax.convert.int8 import quantised, restored
from smke_jax.convert.params_file import PARAMS, load_params, save_params

rng = np.random.default_rng(0)
FLAT = {
    "block/kernel": rng.normal(size=(5, 3)).astype(np.float32) * np.array([1, 100, 0], np.float32),
    "word_embedding": rng.normal(size=(4, 6)).astype(np.float32) * np.array([[1], [0.01], [50], [0]], np.float32),
    "norm/scale": rng.normal(size=3).astype(np.float32),
}


def test_each_channel_has_its_own_scale():
    kept = quantised(FLAT)
    assert kept["block/kernel"].dtype == np.int8 and kept["norm/scale"].dtype == np.float32
    assert kept["block/kernel@scale"].shape == (1, 3) and kept["word_embedding@scale"].shape == (4, 1)
    found = restored(kept)
    assert set(found) == set(FLAT)
    step = np.abs(FLAT["block/kernel"]).max(axis=0) / 127
    assert np.all(np.abs(found["block/kernel"] - FLAT["block/kernel"]) <= step / 2 * 1.0001)
    step = np.abs(FLAT["word_embedding"]).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(found["word_embedding"] - FLAT["word_embedding"]) <= step / 2 * 1.0001)
    assert np.abs(found["block/kernel"] - FLAT["block/kernel"]).max() > 0.01, "nothing was rounded"
    np.testing.assert_array_equal(found["norm/scale"], FLAT["norm/scale"])


def test_a_file_of_them_is_read_as_any_other(tmp_path):
    kept = quantised(FLAT)
    tree = {"block": {k.partition("/")[2]: x for k, x in kept.items() if k.startswith("block/")}}
    tree |= {k: x for k, x in kept.items() if "/" not in k}
    save_params(tmp_path / PARAMS, tree, {"model": {"type": "made up"}})
    found = load_params(tmp_path)
    np.testing.assert_array_equal(found["block"]["kernel"], restored(kept)["block/kernel"])
    assert set(found) == {"block", "word_embedding"} and found["word_embedding"].dtype == np.float32
