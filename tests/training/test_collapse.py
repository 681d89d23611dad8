"""A student whose embeddings become all the same: the number that shows it, and the line that says so."""

import json
import logging

import jax.numpy as jnp
import numpy as np
import tiny

from smke_jax.config import towers
from smke_jax.training import loop
from smke_jax.training.step import _embedding_std


def test_the_standard_deviation_is_1_in_all_directions_and_0_in_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 32)).astype(np.float32)
    np.testing.assert_allclose(_embedding_std(x), 1, atol=0.01)
    scaled = x * rng.uniform(1, 100, (4000, 1)).astype(np.float32)  # lengths do not matter
    np.testing.assert_allclose(_embedding_std(scaled), _embedding_std(x), rtol=1e-5)
    assert _embedding_std(jnp.ones((8, 5))) < 1e-6
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for shift in (1.0, 30.0):  # towards one another
        y = unit.astype(np.float64) + shift / np.sqrt(32)
        y /= np.linalg.norm(y, axis=1, keepdims=True)
        np.testing.assert_allclose(_embedding_std(y.astype(np.float32)), np.std(y, 0).mean() * 32**0.5, rtol=1e-3)


def test_a_run_without_negatives_collapses_and_says_so_once(tmp_path, monkeypatch, caplog):
    """The cosine loss of matching pairs alone: it falls to 0 as all images and texts come to one embedding."""
    monkeypatch.setattr(loop, "WATCHED_FROM", 0)
    config = tiny.tiny_config()
    config.passes, config.teacher.checkpoint, config.eval.split = ("student",), "", ""
    for name in list(config.terms):
        del config.terms[name]
    config.terms.cosine = {"negatives": False}
    towers(config, init_std=0.0, norm_order="pre")
    config.optimizer.update(learning_rate=2e-2, reference_batch=0, warmup_fraction=0.0)
    config.total_steps, config.checkpoint.every, config.eval.every = 60, 0, 0
    with caplog.at_level(logging.WARNING, "smke_jax"):
        loop.train_and_evaluate(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[0], rows[-1]
    for side in ("image", "text"):
        name = f"embedding_std/{side}/out"
        assert first[name] > 5 * loop.COLLAPSED > 5 * last[name], (first, last)
    assert last["loss"] < 1e-3
    said = [record.message for record in caplog.records if "nearly the same" in record.message]
    assert len(said) == 1 and "embedding_std/" in said[0]
