"""The report of a run, from the files of runs that are made up."""

import json

import numpy as np
import pytest
from made_runs import make_run, retrieval
from pages import HOSTILE, Page

from smke_jax.errors import UserError
from smke_jax.reporting import plots
from smke_jax.reporting.evaluations import Evaluation, read_evaluations, read_examples, write_examples
from smke_jax.reporting.evaluator_tables import curve_row
from smke_jax.reporting.run_report import cost, read_files, write_run_report

DEPARTURES = {"config.batch_size": (64, 256)}


def photos(count, side=20):
    return [np.full((side, side, 3), 30 * i, np.uint8) for i in range(count)]


def examples(caption="two dogs"):
    one, two, three = photos(3)
    return {
        "text_to_image": [(caption, [(one, True), (two, False), (three, False)])],
        "image_to_text": [(one, [(caption, False), ("a cat", True)])],
    }


@pytest.fixture
def run(tmp_path):
    """Of 40 steps, evaluated at 20 and 40, with counts of its data and examples."""
    path = make_run(tmp_path / "mine", r1=50.0, device="NVIDIA H200")
    (path / "evals" / "20").mkdir()
    (path / "evals" / "20" / "retrieval.json").write_text(json.dumps(retrieval(30.0)))
    record = json.loads((path / "run.json").read_text())
    record["data"] = [
        {"split": "train", "data": "flickr8k", "images": 6000, "captions": 29997, "skipped": 12},
        {"split": "gallery", "data": "flickr8k", "images": 1000, "captions": 5000, "skipped": 0},
    ]
    record |= {"command": ["smke", "train", "--config=x.py", "--workdir=my runs/a"], "versions": {"jax": "0.10.2"}}
    (path / "run.json").write_text(json.dumps(record))
    write_examples(path / "evals", "retrieval", 40, examples())
    return path


def written(path):
    """(the page, the Markdown) of the report of the run at `path`."""
    page, markdown = write_run_report(path, DEPARTURES)
    assert (page.name, markdown.name) == ("report.html", "report.md")
    return Page(page), markdown.read_text(encoding="utf-8")


def test_what_a_run_was_and_found(run):
    page, markdown = written(run)
    for said in (
        "Step 40 of 40, finished.",
        "Trained on 6,000 images with 29,997 captions of flickr8k.",
        "50.0",  # R@1
        "smke train --config=x.py '--workdir=my runs/a'",
        "jax 0.10.2",
    ):
        assert page.has(said) and said in markdown, said
    assert page.has("48.0 to 52.0") and "50.0 (48.0 to 52.0)" in markdown  # of step 40
    assert page.has("28.0 to 32.0") and "30.0 (28.0 to 32.0)" in markdown  # of step 20
    lines = [" ".join(line.replace("|", " ").split()) for line in markdown.splitlines()]
    assert "flickr8k, train 6,000 29,997 12" in lines  # images, captions, skipped
    assert "batch_size 64 256" in lines  # value and default
    assert "loss 31.5 1.5" in lines  # first and last logged
    assert [x for x in lines if x.startswith("network student two_towers")] and "loss itc itc weight 1" in lines
    assert "- ✓✗✗ two dogs" in markdown
    classes = [attributes.get("class") for _, attributes in page.tags]
    assert (classes.count("hit right"), classes.count("hit wrong")) == (1, 2)
    assert len(page.sources()) == 4 and not page.has("Not recorded")
    captions = "".join(page.text)
    assert "Recall of image → text against the step, with 95 % intervals" in captions


def test_the_cost_is_that_of_the_steps_at_the_price_of_the_device(run):
    # 40 steps of 64 examples at 100 a second, on one H200 at 4 dollars an hour
    assert cost(read_files(run)) == pytest.approx(40 * 64 / 100 / 3600 * 4.0)
    assert cost(read_files(make_run(run.parent / "other", device="cpu"))) is None


def test_captions_and_names_are_text(run):
    harmless, _ = written(run)
    write_examples(run / "evals", "retrieval", 40, examples(HOSTILE))
    hostile, markdown = written(run)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert hostile.has("<script>alert('x')</script>")
    assert "\n- ✓✗✗ <script>" in markdown  # in one line


def test_the_page_fetches_nothing(run):
    page, _ = written(run)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources())
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'")


def test_a_picture_of_examples_that_is_no_photo_is_refused(run):
    """The file could be anyone's: what is not a JPEG inside of it never becomes an address in the page."""
    path = run / "evals" / "retrieval.examples.json"
    said = json.loads(path.read_text())
    said["text_to_image"][0][1][0][0] = "http://evil.example/a.png"
    path.write_text(json.dumps(said))
    with pytest.raises(UserError, match="uint8"):
        write_run_report(run, {})


def test_a_bare_run_says_what_is_missing(tmp_path):
    path = make_run(tmp_path / "bare", r1=None, steps=10)
    (path / "metrics.jsonl").unlink()
    page, _ = written(path)
    assert page.has("Step 0 of 40, not finished.") and page.has("no such metrics file")
    assert page.has("Not recorded for this run: evaluations, curves of the training, examples of what is found.")
    with pytest.raises(UserError, match="no run at"):
        write_run_report(tmp_path / "nothing", {})


def test_damaged_files_are_named_and_left_out(run):
    (run / "evals" / "40" / "retrieval.json").write_text('{"half')
    (run / "evals" / "retrieval.examples.json").write_text("[]")
    page, _ = written(run)
    assert page.has("40/retrieval.json is damaged") and page.has("retrieval.examples.json is damaged")
    assert page.has("28.0 to 32.0") and not page.has("48.0 to 52.0")
    assert read_examples(run / "evals", []) == {}


def test_evaluations_come_newest_first(run):
    problems = []
    assert [x.step for x in read_evaluations(run / "evals", problems)] == [40, 20] and not problems


def test_intervals_are_bands_in_the_picture(run):
    rows = [curve_row(x) for x in read_evaluations(run / "evals", [])]
    axes = plots.recall_figure(rows, "image_to_text").axes[0]
    assert [line.get_label() for line in axes.lines] == ["R@1", "R@5", "R@10"]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[20, 30], [40, 50]])
    corners = axes.collections[0].get_paths()[0].vertices
    assert {(20, 28), (20, 32), (40, 48), (40, 52)} <= {tuple(x) for x in corners.tolist()}


def test_an_evaluator_of_another_kind(tmp_path):
    """Numbers by name, drawn by group."""
    path = make_run(tmp_path / "probed", r1=None)
    for step in (20, 40):
        (path / "evals" / str(step)).mkdir(parents=True)
        record = {"protocol": "a probe", "auc": {"shape": step / 50, "colour": 0.5}, "effective_rank": 7.25}
        (path / "evals" / str(step) / "probe.json").write_text(json.dumps(record))
    page, markdown = written(path)
    assert page.has("probe auc/shape") and page.has("0.8") and page.has("a probe")
    assert page.has("auc against the step") and page.has("effective_rank against the step")
    assert "| 40   | 0.8" in markdown
    assert curve_row(Evaluation("p", 3, {"a": {"b": 1}}, path)) == {"step": 3, "eval/p/a/b": 1.0}


@pytest.mark.parametrize(("smallest", "marks"), [(0.1, {0.1, 0.2, 0.5, 1.0, 2.0}), (1e-6, {1e-6, 1e-4, 0.1, 1.0})])
def test_logarithmic_axes_have_few_numbers(smallest, marks):
    rows = [{"step": step, "grad_norm": 2.0, "update_norm": smallest} for step in (1, 2)]
    (norms,) = plots.norm_figure(rows).axes
    low, high = norms.get_ylim()
    shown = [x for x in norms.get_yticks() if low <= x <= high]
    assert len(shown) <= 8 and all(np.isclose(shown, mark, rtol=1e-6).any() for mark in marks), shown


def test_norms_spread_and_accuracy_are_drawn():
    rows = [
        {"step": s, "grad_norm": 2.0, "update_norm": 0.01, "embedding_std/image/out": 0.9, "itc/accuracy_out": 0.25}
        for s in (1, 2)
    ]
    (norms,) = plots.norm_figure(rows).axes
    assert [line.get_label() for line in norms.lines] == ["gradient", "update of the parameters"]
    assert norms.get_yscale() == "log"
    (spread,) = plots.spread_figure(rows).axes
    assert spread.lines[0].get_ydata().tolist() == [0.9, 0.9] and spread.get_ylim()[1] >= 1
    assert plots.accuracy_figure(rows).axes[0].lines[0].get_ydata().tolist() == [25.0, 25.0]  # percent
    assert plots.norm_figure([]) is plots.spread_figure([]) is plots.accuracy_figure([]) is None
