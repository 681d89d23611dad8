"""Accuracy: exact counts over a whole split, whatever the batch, and honest intervals."""

import jax.numpy as jnp
import numpy as np
import pytest

from smke_jax.errors import UserError
from smke_jax.evaluators.accuracy import accuracy, accuracy_figures, label_ranks, share_interval
from smke_jax.evaluators.encode import Encoder
from smke_jax.parallel.mesh import make_mesh
from smke_jax.passes.base import Pass
from smke_jax.tasks.base import Column, Split

ROWS, CLASSES = 13, 7
RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(ROWS, CLASSES)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, ROWS)


def split_of(scores=SCORES, labels=LABELS, **facts):
    columns = {"x": Column(len(scores), lambda rows: scores[np.asarray(rows)])}
    return Split("made up", "", columns, {"labels": labels, **facts})


def by_sorting(scores, labels, k):
    """Top-k, row after row."""
    return 100 * np.mean([y in np.argsort(-row, kind="stable")[:k] for row, y in zip(scores, labels, strict=True)])


@pytest.mark.parametrize("devices, batch", [(1, 4), (8, 8), (1, 64)])
def test_every_row_counts_once_although_the_last_batch_is_filled_up(devices, batch):
    logits = Pass("p", (), ("x",), ("class/logits",), lambda params, a, key, train: {"class/logits": a["x"] + 0})
    encode = Encoder(lambda names, columns: (logits,), lambda p: {}, make_mesh(devices), batch_size=batch)
    figures = accuracy(split="dev").run(encode, None, split_of())
    assert figures.record["rows"] == ROWS
    assert figures.scalars == {f"top{k}": pytest.approx(by_sorting(SCORES, LABELS, k)) for k in (1, 5)}
    np.testing.assert_array_equal(figures.arrays["predicted"], SCORES.argmax(1))


def test_equal_scores_keep_the_order_of_the_classes():
    assert label_ranks(np.zeros((3, 4)), np.array([0, 2, 3])).tolist() == [1, 3, 4]


def test_few_classes_have_no_top_five():
    assert set(accuracy_figures(SCORES[:, :5], split_of(labels=LABELS % 5), "").scalars) == {"top1"}


@pytest.mark.parametrize(("hits", "rows"), [(150, 200), (10, 10), (0, 7)])
def test_the_interval_holds_the_shares_that_a_score_test_does_not_reject(hits, rows):
    """Wilson's interval: |share - p| <= 1.96 standard errors of p, searched on a grid."""
    p = np.linspace(0, 1, 100_001)
    inside = p[np.abs(hits / rows - p) <= 1.959964 * np.sqrt(p * (1 - p) / rows) + 1e-12]
    np.testing.assert_allclose(share_interval(hits, rows), 100 * inside[[0, -1]], atol=2e-3)
    assert np.ptp(share_interval(hits, rows)) > 1


def test_what_has_no_fitting_labels_is_refused():
    with pytest.raises(UserError, match="made up has no labels"):
        accuracy_figures(SCORES, Split("made up", "", {}), "")
    with pytest.raises(UserError, match="labels from 0 to 7, and there are 7 scores"):
        accuracy_figures(SCORES, split_of(labels=np.arange(ROWS) % 8), "")
    with pytest.raises(UserError, match="NaN or infinity"):
        accuracy_figures(np.asarray(jnp.where(SCORES > 1, jnp.nan, SCORES)), split_of(), "")
