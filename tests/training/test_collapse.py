"""Embeddings that become all the same: the number that shows it, and the line that says so."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
from two_matrices import SIZES, two_matrices_config

from smke_jax.networks import NETWORKS
from smke_jax.networks.base import Network
from smke_jax.objectives import TERMS
from smke_jax.objectives.base import Term, no_state
from smke_jax.parts import part
from smke_jax.passes.base import Pass
from smke_jax.training import loop, opening
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


def with_bias() -> Network:
    """Two matrices and two biases: enough to say always the same."""

    def init(key, specs):
        keys = jax.random.split(key)
        kernels = {side: 0.2 * jax.random.normal(k, (SIZES[side], 4)) for side, k in zip(SIZES, keys)}
        return {side: {"kernel": kernel, "bias": jnp.ones(4)} for side, kernel in kernels.items()}

    def encode(name, side):
        def run(params, arrays, key, train):
            return {f"{side}/out": arrays[side] @ params[name][side]["kernel"] + params[name][side]["bias"]}

        return Pass(f"{name}/{side}", (name,), (side,), (f"{side}/out",), run, watched=(f"{side}/out",))

    return Network(init, lambda name, specs: tuple(encode(name, side) for side in SIZES))


def flat() -> Term:
    """A loss of nothing that finds its own representations all the same, as those of hidden words can be."""
    return Term(("image/out",), no_state, lambda params, slots, reps, scope: (
        0.0 * reps["image/out"].sum(), {"embedding_std/words": 0.0 * reps["image/out"].sum()}
    ))  # fmt: skip


def test_a_run_without_negatives_collapses_and_says_so_once(tmp_path, monkeypatch, caplog):
    """The cosine loss of matching pairs alone: it falls to 0 as all images and texts come to one embedding."""
    monkeypatch.setattr(opening, "WATCHED_FROM", 0)
    monkeypatch.setitem(NETWORKS, "with_bias", with_bias)
    monkeypatch.setitem(TERMS, "flat", flat)
    config = two_matrices_config("cosine")
    config.terms.cosine.negatives = False
    config.networks.net, config.terms.flat = part("with_bias"), part("flat")
    config.optimizer.learning_rate = 0.1
    config.total_steps, config.checkpoint.every, config.evaluators.retrieval.every = 100, 0, 0
    with caplog.at_level(logging.WARNING, "smke_jax"):
        loop.train_and_evaluate(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    first, last = rows[0], rows[-1]
    for side in ("image", "text"):
        name = f"embedding_std/{side}/out"
        assert first[name] > 5 * loop.COLLAPSED and last[name] < loop.COLLAPSED, (first, last)
    assert last["loss"] < 1e-3
    said = [record.message for record in caplog.records if "nearly the same" in record.message]
    # The made-up term is the first of them: what has been told does not silence what collapses later.
    for name in ("flat/embedding_std/words 0 ", "embedding_std/image/out 0.", "embedding_std/text/out 0."):
        assert sum(name in line for line in said) == 1, said
    assert name not in said[0] and "flat/" in said[0]
