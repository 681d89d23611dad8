"""The page of a comparison: all runs in its table and its pictures, and what they find for the same captions."""

import json

import numpy as np
import pytest
from made_runs import make_run, retrieval
from pages import HOSTILE, Page

from smke_jax.reporting.evaluations import write_examples
from smke_jax.studies.compare import page
from smke_jax.studies.compare.table import compare
from smke_jax.studies.runs import read_runs


def evaluated(path, first, last, caption="two dogs", **fields):
    """A run evaluated at 20 and 40, whose first image for `caption` is right."""
    make_run(path, r1=last, device="cpu", **fields)
    (path / "evals" / "20").mkdir()
    (path / "evals" / "20" / "retrieval.json").write_text(json.dumps(retrieval(first)))
    images = [(np.full((8, 8, 3), 40 * i, np.uint8), i == 0) for i in range(3)]
    write_examples(path / "evals", "retrieval", 40, {"text_to_image": [(caption, images)], "image_to_text": []})
    return path


@pytest.fixture
def two(tmp_path):
    return [evaluated(tmp_path / "one", 20.0, 30.0), evaluated(tmp_path / "other", 25.0, 45.0, task__flip=0.25)]


def test_everything_is_on_one_page(two, tmp_path):
    compare(two, tmp_path / "out")
    made = Page(tmp_path / "out" / "compare.html")
    assert (
        made.has("2 runs beside each other") and made.has("task.flip0.50.25") and made.has("one") and made.has("other")
    )
    assert made.has("Recalls in percent, made up: 500 images")  # the notes of the table
    assert made.has("R@1 text → image against the step") and made.has("loss against the step")
    assert made.has("two dogs") and len(made.sources()) == 2 * 3
    assert [a.get("class") for _, a in made.tags].count("hit right") == 2


def test_every_run_has_its_line_and_its_band(two):
    runs, _ = read_runs(two)
    figures = {caption: figure for figure, caption in page._curves(runs) if figure}
    recalls = figures["R@1 image → text against the step, 95 % intervals"].axes[0]
    assert [line.get_label() for line in recalls.lines] == ["one", "other"] and len(recalls.collections) == 2
    np.testing.assert_allclose(recalls.lines[1].get_xydata(), [[20, 25], [40, 45]])
    losses = figures["loss against the step"].axes[0]
    np.testing.assert_allclose(losses.lines[0].get_xydata(), [[10, 31.5], [20, 21.5], [30, 11.5], [40, 1.5]])


def test_names_and_captions_are_text_and_other_captions_are_left_out(tmp_path):
    runs = [
        evaluated(tmp_path / "<b>one", 20.0, 30.0, HOSTILE), evaluated(tmp_path / "other", 25.0, 45.0, HOSTILE),
        evaluated(tmp_path / "third", 25.0, 45.0, "another caption"),
    ]  # fmt: skip
    compare(runs, tmp_path / "out")
    made = Page(tmp_path / "out" / "compare.html")
    assert made.has("<script>alert('x')</script>") and made.has("<b>one") and not made.has("another caption")
    assert {tag for tag, _ in made.tags}.isdisjoint({"script", "b", "link"})


def test_a_run_without_figures_is_no_obstacle(tmp_path):
    path = make_run(tmp_path / "begun", r1=None, steps=0)
    (path / "metrics.jsonl").unlink()
    compare([path], tmp_path / "out")
    made = Page(tmp_path / "out" / "compare.html")
    assert made.has("Run begun") and made.has("0 of 40, not finished") and not made.has("Curves")
