"""The report: hostile text stays text, missing parts are named, the file needs nothing beside itself."""

import base64
import io
import json
import re

import numpy as np
import pytest
from pages import HOSTILE, Page
from PIL import Image

from smke_jax.errors import UserError
from smke_jax.reporting import plots
from smke_jax.reporting.metrics_log import read_metrics, series
from smke_jax.reporting.report import Query, Recall, RunReport, write_report

SIX = {
    "image_to_text": {"r1": 51.66, "r5": 79.9, "r10": 88.66},
    "text_to_image": {"r1": 36.17, "r5": 66.55, "r10": 78.28},
}


def image(colour=0, shape=(20, 30, 3)):
    return np.full(shape, colour, np.uint8)


def metrics_rows():
    rows = [
        {
            "step": step,
            "loss": 3 / step,
            "itc/loss": 2 / step,
            "itc/logit_scale_out": 14 + step,
            "examples_per_second": 100.0,
            "data_wait": 0.1,
        }
        for step in range(1, 200)
    ]
    evaluations = [
        {"step": s, "eval/retrieval/image_to_text/r1": 3.0, "eval/retrieval/text_to_image/r5": 9.0} for s in (50, 100)
    ]
    return rows + evaluations


def full_report(text="a dog"):
    return RunReport(
        title=text,
        summary=[text],
        headline=[(text, text)],
        metrics_rows=metrics_rows(),
        recalls=[Recall(text, SIX, text), ("ceiling", None, "")],
        queries=[Query(text, [image(), image(9)], [0.5, 0.25], [True, False]), Query(text, [image()], [0.1])],
        text_to_image=[(text, [(image(), True), (image(200), False)])],
        image_to_text=[(image(), [(text, True), ("other", False)])],
        facts={text: text, "config": {text: text}},
        command=text,
    )


def test_file_is_self_contained(tmp_path):
    page = Page(write_report(tmp_path / "report.html", full_report()))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    attributes = {name for _, attributes in page.tags for name in attributes}
    assert attributes.isdisjoint({"href", "srcset", "action", "background"})
    assert not any(name.startswith("on") for name in attributes)
    assert len(page.sources()) == 3 + 2 + 1  # query photos, photos of a caption, query image
    assert [tag for tag, _ in page.tags].count("svg") == 3  # curves
    for source in page.sources():
        kind, data = source.split(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        Image.open(io.BytesIO(base64.b64decode(data))).verify()
    assert set(re.findall(r"url\((.)", (tmp_path / "report.html").read_text())) <= {"#"}  # of the page itself
    assert "@import" not in (tmp_path / "report.html").read_text()


def test_hostile_text_stays_text(tmp_path):
    """The same tags in the same order as with harmless text, and the text itself still to be read."""
    harmless = Page(write_report(tmp_path / "harmless.html", full_report()))
    hostile = Page(write_report(tmp_path / "hostile.html", full_report(HOSTILE)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert [sorted(attributes) for _, attributes in hostile.tags] == [
        sorted(attributes) for _, attributes in harmless.tags
    ]
    assert "".join(hostile.text).count("<script>alert('x')</script>") >= 11


def test_missing_parts_are_named(tmp_path):
    path = write_report(tmp_path / "report.html", RunReport(title="bare"))
    page = Page(path)
    assert page.has("Not recorded for this run: recalls, training curves, text queries")
    assert page.sources() == []
    assert not Page(write_report(path, full_report())).has("Not recorded")
    losses_only = Page(write_report(path, RunReport(title="t", metrics_rows=[{"step": 1, "loss": 2.0}])))
    assert [tag for tag, _ in losses_only.tags].count("svg") == 1


def test_right_and_wrong_are_marked(tmp_path):
    page = Page(write_report(tmp_path / "report.html", full_report()))
    classes = [attributes.get("class") for _, attributes in page.tags]
    assert (classes.count("hit right"), classes.count("hit wrong"), classes.count("hit ")) == (2, 2, 2)
    assert (classes.count("right"), classes.count("wrong")) == (1, 1)
    notes = 2  # the sections explain their marks
    assert ["".join(page.text).count(mark) for mark in "✓✗"] == [3 + notes, 3 + notes]


def test_recalls_show_protocol_intervals_and_small_numbers(tmp_path):
    measured = {
        **SIX,
        "protocol": "coco-karpathy-test any-of-5",
        "n_images": 5000,
        "n_captions": 25010,
        "ci95": {direction: {key: [50.25, 53.0] for key in ("r1", "r5", "r10")} for direction in SIX},
    }
    chance = {"image_to_text": {"r1": 0.02, "r5": 0.1, "r10": 0.2}, "text_to_image": {"r1": 0.02}}
    page = Page(
        write_report(
            tmp_path / "r.html", RunReport(title="t", recalls=[Recall("this run", measured), Recall("chance", chance)])
        )
    )
    assert page.has("coco-karpathy-test any-of-5: 5000 images, 25010 captions")
    assert page.has("51.7")
    assert page.has("50.2 to 53.0")
    assert page.has("0.02"), "chance must not be printed as 0.0"
    assert page.has("–"), "an unknown number is a dash"


def test_float_image_is_refused_and_old_report_kept(tmp_path):
    path = write_report(tmp_path / "report.html", RunReport(title="old"))
    with pytest.raises(UserError, match="float32.*uint8"):
        write_report(path, RunReport(title="new", queries=[Query("q", [np.zeros((8, 8, 3), "f")], [1.0])]))
    assert Page(path).has("old")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_truncated_metrics_are_read_and_counted(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0 / step}) for step in (1, 2, 3)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(lines) + '\n{"step": 4, "lo')
    log = read_metrics(path)
    assert list(log) == [json.loads(line) for line in lines]
    assert log.unreadable == 1
    page = Page(write_report(tmp_path / "report.html", RunReport(title="t", metrics_rows=log)))
    assert page.has("Unreadable lines of the metrics file, left out: 1.")

    # A resumed run appends to the broken line.
    path.write_text(path.read_text() + lines[0] + "\n" + lines[1] + "\n")
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 2]


def test_cut_inside_a_character(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + '{"note": "ü'.encode()[:-1])
    assert (list(read_metrics(path)), read_metrics(path).unreadable) == ([{"step": 1}], 1)


def test_wrong_metrics_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such metrics file"):
        read_metrics(tmp_path / "absent.jsonl")
    (tmp_path / "notes.txt").write_text("hello\nworld\n")
    with pytest.raises(UserError, match="none of its 2 lines"):
        read_metrics(tmp_path / "notes.txt")
    (tmp_path / "empty.jsonl").write_text("")
    assert read_metrics(tmp_path / "empty.jsonl") == []


def test_series_keeps_the_later_of_two_and_only_finite_values():
    rows = [
        {"step": 2, "loss": 9.0},
        {"step": 1, "loss": 5.0},
        {"step": 2, "loss": 4.0},
        {"step": 3, "loss": float("nan")},
        {"step": 4, "loss": None},
        {"step": 5},
        {"loss": 1.0},
    ]
    assert series(rows, "loss") == ([1, 2], [5.0, 4.0])


def test_not_finite_losses_are_told(tmp_path):
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("nan")}]
    page = Page(write_report(tmp_path / "r.html", RunReport(title="t", metrics_rows=rows)))
    assert page.has("1 logged values of the total are not finite")


def test_axes_say_whole_steps_and_whole_values():
    rows = [{"step": step, "itc/logit_scale": 14.2857 - 1e-5 * step, "examples_per_second": 4.0} for step in (1, 2)]
    scale, speed = plots.logit_scale_figure(rows), plots.throughput_figure(rows)
    for figure in (scale, speed):
        figure.draw_without_rendering()
        assert all(float(x) == int(x) for x in figure.axes[0].get_xticks())
    assert scale.axes[0].yaxis.get_major_formatter().get_offset() == ""


def test_running_mean_is_a_mean():
    """The bold curve over many points: right in the middle, shrinking windows at the ends."""
    rows = [{"step": step, "loss": float(step)} for step in range(200)]
    faint, bold = plots.loss_figure(rows).axes[0].lines
    assert len(faint.get_ydata()) == len(bold.get_ydata()) == 200
    np.testing.assert_allclose(bold.get_ydata()[4:-4], np.arange(4, 196))
    np.testing.assert_allclose(bold.get_ydata()[[0, -1]], [2, 197])


def test_figures_are_absent_without_their_keys():
    rows = [{"step": 1, "learning_rate": 0.1}]
    assert plots.loss_figure(rows) is plots.logit_scale_figure(rows) is plots.throughput_figure(rows) is None
    assert plots.recall_figure(rows, "image_to_text") is None
    labels = [line.get_label() for line in plots.loss_figure(metrics_rows()).axes[0].lines]
    assert {"itc/loss", "total"} <= set(labels)
    two = [{"step": s, **{f"eval/{name}/image_to_text/r1": 1.0 * s for name in ("dev", "test")}} for s in (1, 2)]
    lines = plots.recall_figure(two, "image_to_text").axes[0].lines
    assert [line.get_label() for line in lines] == ["dev R@1", "test R@1"]
    assert plots.recall_figure(two[:1], "image_to_text") is None
    levels = [{"step": 1, "itc/loss_out": 1.0, "itc/loss_interm": 2.0, "lossy": 3.0, "eval/r1": 4.0}]
    assert [line.get_label() for line in plots.loss_figure(levels).axes[0].lines] == ["itc/loss_interm", "itc/loss_out"]
    speed, wait = plots.throughput_figure(metrics_rows()).axes
    assert speed.lines[0].get_ydata()[0] == 100
    np.testing.assert_allclose(wait.lines[0].get_ydata(), 10)  # 0.1 of the time, in percent


@pytest.mark.parametrize("path_part", ["grid.png", "new/folder/grid.png"])
def test_grid_frames_right_and_wrong(tmp_path, path_part):
    """A caption that would be a broken formula is drawn, and green and red frames are there."""
    hits = [(image(255), True), (image(255), False), (image(255, (40, 20, 3)), False)]
    path = plots.retrieval_grid(
        tmp_path / path_part,
        text_to_image=[("costs $\\frac{$", hits)],
        image_to_text=[(image(255), [("$x_{$", None)])],
        title="$^{$",
    )
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).tolist()
    green, red = [26, 138, 60], [198, 40, 40]
    assert pixels.count(red) > 1.5 * pixels.count(green) > 1000


def test_empty_grid_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing to draw"):
        plots.retrieval_grid(tmp_path / "grid.png")
