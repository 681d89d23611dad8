"""Scores over fp16 rows against plain NumPy."""

import numpy as np
import pytest

from smke_jax.search.scores import BLOCK, alike, best, scores_of


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 7])
def test_scores_are_those_of_plain_numpy(count):
    rng = np.random.default_rng(count)
    rows = (rng.normal(size=(count, 12)) / 4).astype(np.float16)
    queries = rng.normal(size=(2, 12)).astype(np.float32)
    expected = rows.astype(np.float32) @ queries.T
    np.testing.assert_allclose(scores_of(rows, queries), expected, rtol=1e-6, atol=1e-6)


def test_every_number_of_fp16_is_widened_exactly():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    rows = every[np.isfinite(every)][:, None]
    np.testing.assert_array_equal(scores_of(rows, np.ones((1, 1), np.float32))[:, 0], rows[:, 0].astype(np.float32))


def test_rows_may_lie_in_a_file(tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    rows.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", "<f2", "r", shape=(5, 3))
    np.testing.assert_array_equal(scores_of(mapped, np.eye(3, dtype=np.float32)), rows.astype(np.float32))


@pytest.mark.parametrize("k", [1, 3, 50, 99])
def test_the_best_are_those_of_a_stable_sort(k):
    scores = np.random.default_rng(0).integers(0, 9, 50).astype(np.float32)
    np.testing.assert_array_equal(best(scores, k), np.argsort(-scores, kind="stable")[:k])


def test_no_scores_have_no_best():
    assert len(best(np.zeros(0, np.float32), 3)) == 0


def test_pairs_alike_are_those_of_all_products(monkeypatch):
    monkeypatch.setattr("smke_jax.search.scores.BLOCK", 2)
    rows = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float16)
    numbers = np.arange(3, 30)
    products = rows[3:].astype(np.float32) @ rows[3:].astype(np.float32).T
    found = {(int(i), int(j)): s for part in alike(rows, numbers, 1.5) for i, j, s in zip(*part, strict=True)}
    expected = {(int(i), int(j)): products[i, j] for i, j in zip(*np.nonzero(products >= 1.5)) if i < j}
    assert found.keys() == expected.keys() and len(found) > 10
    np.testing.assert_allclose([found[key] for key in expected], list(expected.values()), rtol=1e-6)
