"""How like a student's tokens are to its teacher's, against plain sums over all tokens at once."""

import numpy as np
import pytest

from smke_jax.evaluators.layer_agreement import ROWS, layer_agreement
from smke_jax.tasks.base import Column, Split

COUNT = ROWS + 7  # the last rows are another call of `encode`
RNG = np.random.default_rng(0)
TEACHER = RNG.normal(size=(COUNT, 4, 3)) + 1
STUDENT = TEACHER + 0.5 * RNG.normal(size=TEACHER.shape)
MASK = (np.arange(4) < RNG.integers(1, 5, (COUNT, 1))).astype(np.int32)
ARRAYS = {"student/layers": STUDENT, "teacher/layers": TEACHER}


def encode(names, split):
    """Of the row number that a column holds."""
    column = split.columns["image" if "image" in split.columns else "number"]
    numbers = column.read(list(range(column.rows)))
    return {name: ARRAYS[name][numbers] for name in names}


def numbered(rows):
    return np.asarray(rows)


def measured(mask):
    columns = {"image": Column(COUNT, numbered)}
    if mask:
        columns = {"number": Column(COUNT, numbered), "text_mask": Column(COUNT, lambda rows: MASK[rows])}
    evaluator = layer_agreement(mask=mask, split="dev")
    return evaluator, evaluator.run(encode, None, Split("made up dev", "", columns))


@pytest.mark.parametrize("mask", ["", "text_mask"])
def test_figures_are_those_of_all_tokens(mask):
    evaluator, figures = measured(mask)
    kept = MASK.astype(bool) if mask else np.ones(MASK.shape, bool)
    a, b = STUDENT[kept], TEACHER[kept]
    around = np.concatenate([row[own] - row[own].mean(0) for row, own in zip(TEACHER, kept, strict=True)])
    expected = {
        "loss": np.mean((a - b) ** 2),
        "cosine": np.mean([x @ y / np.sqrt(x @ x * (y @ y)) for x, y in zip(a, b, strict=True)]),
        "explained": 1 - np.sum((a - b) ** 2) / np.sum(around**2),
    }
    assert figures.scalars == pytest.approx(expected)
    assert figures.record["tokens"] == kept.sum() and figures.record["rows"] == COUNT
    rows = [np.mean((STUDENT[i, kept[i]] - TEACHER[i, kept[i]]) ** 2) for i in range(COUNT)]
    np.testing.assert_allclose(figures.arrays["loss"], rows, rtol=1e-5)
    assert evaluator.rank(figures) == -figures.scalars["loss"], "the lowest loss is the best"
