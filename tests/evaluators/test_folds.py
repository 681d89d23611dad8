"""Recall within folds, against every fold by itself in plain NumPy."""

import numpy as np

from smke_jax.evaluators.folds import fold_recalls
from smke_jax.evaluators.recalls import format_table, retrieval_metrics

rng = np.random.default_rng(0)
SIZE, FOLDS = 10, 3
IMAGES = rng.normal(size=(SIZE * FOLDS + 4, 6)).astype(np.float32)  # a rest that is left out
OWNER = np.sort(np.concatenate([np.arange(len(IMAGES)), rng.integers(0, len(IMAGES), 40)]))
TEXTS = (IMAGES[OWNER] + 1.5 * rng.normal(size=(len(OWNER), 6))).astype(np.float32)


def naive(k):
    there, back = [], []
    for fold in range(FOLDS):
        rows = np.arange(fold * SIZE, (fold + 1) * SIZE)
        texts = np.flatnonzero(np.isin(OWNER, rows))
        scores = IMAGES[rows] @ TEXTS[texts].T
        found = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        there.append(np.mean([np.any(OWNER[texts[own]] == row) for row, own in zip(rows, found)]))
        found = np.argsort(-scores.T, axis=1, kind="stable")[:, :k]
        back.append(np.mean([OWNER[text] in rows[own] for text, own in zip(texts, found)]))
    return 100 * np.mean(there), 100 * np.mean(back)


def test_the_mean_of_the_folds():
    found = fold_recalls(IMAGES, TEXTS, OWNER, size=SIZE)
    assert found["folds"] == FOLDS
    for k in (1, 5):
        there, back = naive(k)
        np.testing.assert_allclose([found["image_to_text"][f"r{k}"], found["text_to_image"][f"r{k}"]], [there, back])
    assert found["text_to_image"]["r1"] < 100


def test_one_fold_is_none():
    assert fold_recalls(IMAGES, TEXTS, OWNER, size=20) is None


def test_they_stand_in_what_is_measured():
    images = rng.normal(size=(2000, 4)).astype(np.float32)
    metrics = retrieval_metrics(images, images, np.arange(2000), protocol="made up", bootstrap=0)
    assert metrics["folds_1k"]["folds"] == 2 and "mean of 2 folds of 1,000 images" in format_table(metrics)
    few = retrieval_metrics(images[:50], images[:50], np.arange(50), protocol="made up", bootstrap=0)
    assert "folds_1k" not in few
