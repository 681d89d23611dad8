"""The comparison: what differs, what came out, what is missing; never more than what the files say."""

import json

import numpy as np
import pytest
from made_runs import make_run, retrieval

from smke_jax.errors import UserError
from smke_jax.forms import form_of
from smke_jax.reporting.plots import png_bytes
from smke_jax.studies.compare.plots import quality_figure, throughput_figure
from smke_jax.studies.compare.rows import make_rows
from smke_jax.studies.compare.table import compare
from smke_jax.studies.runs import read_runs

FORM = form_of("smoke")


def table(text: str) -> list[dict[str, str]]:
    """The lines of a Markdown table, by the titles of its columns; those of recalls are numbered."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1, "the columns are aligned"
    cells = [[cell.strip() for cell in line.replace(r"\|", "\0").strip("|").split("|")] for line in lines]
    titles = [f"{title} {i}" if "R@" in title else title for i, title in enumerate(cells[0])]
    return [dict(zip(titles, row, strict=True)) for row in cells[2:]]


def rows_of(path):
    return make_rows(read_runs([path])[0])


def test_one_run_has_all_its_figures(tmp_path):
    make_run(tmp_path / "a", num_devices=2)
    (row,) = table(compare([tmp_path / "a"]))
    assert row == {
        "run": "a", "config": "", "devices": "2 × NVIDIA H200", "batch": "64", "steps": "40",
        "image → text R@1 5": "50.0 ±2.0", "R@5 6": "51.0 ±2.0", "R@10 7": "52.0 ±2.0",
        "text → image R@1 8": "53.0 ±2.0", "R@5 9": "54.0 ±2.0", "R@10 10": "55.0 ±2.0",
        "examples/s": "100", "data wait": "2.0 %", "hours": "0.01", "loss": "1.5",
    }  # fmt: skip


def test_times_are_those_of_the_logged_stretches(tmp_path):
    path = make_run(tmp_path / "a")
    rates, waits = (100.0, 50.0, 200.0, 100.0), (0.0, 0.5, 0.1, 0.2)
    lines = [{"step": 10 * (i + 1), "loss": 1, "examples_per_second": r, "data_wait": w}
             for i, (r, w) in enumerate(zip(rates, waits))]  # fmt: skip
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ((run,), _) = read_runs([path])
    seconds = [640 / rate for rate in rates]
    assert run.examples_per_second == 100.0
    assert run.hours == pytest.approx(sum(seconds) / 3600)
    assert run.data_wait == pytest.approx(sum(s * w for s, w in zip(seconds, waits)) / sum(seconds))


def test_only_what_differs_is_named_and_terms_come_first(tmp_path):
    make_run(tmp_path / "a", task__flip=0.0, terms__target_itc__weight=0.5, optimizer__betas=[0.9, 0.98])
    make_run(tmp_path / "b", batch_size=128, num_devices=2, total_steps=20, optimizer__betas=[0.9, 0.999])
    first, second = table(compare([tmp_path / "a", tmp_path / "b"]))
    assert first["config"] == "terms.target_itc.weight=0.5, optimizer.betas=0.9, 0.98, task.flip=0.0"
    assert second["config"] == "terms.target_itc.weight=–, optimizer.betas=0.9, 0.999, task.flip=0.5"
    assert (second["batch"], second["steps"], second["devices"]) == ("128", "20", "2 × NVIDIA H200")


def test_without_a_final_weight_a_term_keeps_its_first_one(tmp_path):
    make_run(tmp_path / "a", terms__itc__weight=0.5)
    make_run(tmp_path / "b", terms__itc__weight=0.5, terms__itc__final_weight=0.0)
    first, second = table(compare([tmp_path]))
    assert (first["config"], second["config"]) == ("terms.itc.final_weight=0.5", "terms.itc.final_weight=0.0")


def test_a_part_that_some_do_not_have_is_one_difference(tmp_path):
    teacher = {f"networks__teacher__{key}": value for key, value in FORM.teacher().items() if key != "model"}
    model = {f"networks__teacher__model__{key}": value for key, value in FORM.teacher().model.items()}
    make_run(tmp_path / "a", **teacher, **model)
    make_run(tmp_path / "b", task__type="images", networks__student__shared__type="mlp")
    first, second = table(compare([tmp_path]))
    assert first["config"] == "networks.student.shared=transformer, networks.teacher=frozen, task=pairs"
    assert second["config"] == "networks.student.shared=mlp, networks.teacher=–, task=images"


def test_other_evaluators_have_columns_of_their_own(tmp_path):
    def probe(path, step, value):
        record = {"protocol": "probe of [CLS]", "auc": {"shape": value, "colour": 0.5}, "rank": None, "many": [1, 2]}
        (path / "evals" / str(step)).mkdir(parents=True)
        (path / "evals" / str(step) / "probe.json").write_text(json.dumps(record))

    first, second = (make_run(tmp_path / name, r1=None, optimizer__eps=eps) for name, eps in (("a", 1.0), ("b", 2.0)))
    probe(first, 40, 0.75)
    probe(second, 20, 0.625)
    (a, b), text = table(compare([tmp_path], tmp_path / "out")), compare([tmp_path])
    assert (a["probe auc/shape"], a["probe auc/colour"]) == ("0.75", "0.5") and b["probe auc/shape"] == "0.625 at 20"
    assert "- probe: probe of [CLS]." in text and not [title for title in a if "R@" in title]
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert rows[1]["runs"][0]["evaluations"]["probe"]["record"]["auc"]["shape"] == 0.625


def test_of_several_stages_the_last_counts(tmp_path):
    for name in ("x", "y"):
        make_run(tmp_path / name / "codes", r1=None)
    make_run(tmp_path / "x" / "student", optimizer__eps=1.0)
    names = lambda: [row["run"] for row in table(compare([tmp_path]))]  # noqa: E731
    assert names() == ["x/codes, y/codes", "x/student"]
    said = {"state": "finished", "error": "", "stages": ["codes", "student"]}
    (tmp_path / "jobs.json").write_text(json.dumps({"x": said, "y": said}))
    assert names() == ["x"]


def test_a_field_newer_than_a_run_is_no_difference(tmp_path):
    make_run(tmp_path / "new")
    record = json.loads((make_run(tmp_path / "old") / "run.json").read_text())
    del record["config"]["config.micro_batch"]
    (tmp_path / "old" / "run.json").write_text(json.dumps(record))
    (row,) = table(compare([tmp_path]))
    assert row["config"] == "seed=42, 42"


def test_many_differences_are_cut_in_the_table_and_whole_in_the_json(tmp_path):
    make_run(tmp_path / "a", networks__student__image_start="photos/" * 20)
    make_run(tmp_path / "b", **{f"networks__student__{part}__{x}": 7 for part in ("image", "text") for x in
                                ("width", "depth", "mlp_dim", "num_heads")})  # fmt: skip
    first, _ = table(compare([tmp_path], tmp_path / "out"))
    assert first["config"].endswith(", 3 more") and "…" in first["config"] and len(first["config"]) < 250
    data = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert len(data["rows"][0]["different"]) == 9
    assert data["rows"][0]["different"]["config.networks.student.image_start"] == "photos/" * 20


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path):
    for seed, r1 in ((1, 40.0), (2, 46.0), (3, 43.0)):
        make_run(tmp_path / f"batch_size=64,seed={seed}", seed=seed, r1=r1, loss=float(seed))
    make_run(tmp_path / "wide,seed=1", seed=1, networks__student__image__width=96)
    make_run(tmp_path / "other photos,seed=4", seed=4, data="other")
    make_run(tmp_path / "another machine,seed=5", seed=5, device="cpu")
    make_run(tmp_path / "going on,seed=6", seed=6, steps=20)
    text = compare([tmp_path])
    rows = {row["run"]: row for row in table(text)}
    assert list(rows) == ["another machine,seed=5", "batch_size=64", "going on,seed=6", "other photos,seed=4",
                          "wide,seed=1"]  # fmt: skip
    seeds = rows["batch_size=64"]
    assert seeds["config"] == "networks.student.image.width=32, seed=1, 2, 3"
    assert seeds["image → text R@1 5"] == "43.0 (40.0–46.0)" and seeds["loss"] == "2"
    assert rows["wide,seed=1"]["image → text R@1 5"] == "50.0 ±2.0"
    assert "the lowest and the highest" in text and "not trained on the same data" in text
    (group,) = [row for row in rows_of(tmp_path) if len(row.runs) == 3]
    assert group.span("image_to_text", "r1") == (40.0, 46.0)


def test_seeds_without_anything_else_in_their_names_keep_them(tmp_path):
    for seed in (1, 2):
        make_run(tmp_path / f"seed={seed}", seed=seed)
    assert [row["run"] for row in table(compare([tmp_path]))] == ["seed=1, seed=2"]


def test_unfinished_runs_and_old_evaluations_are_marked(tmp_path):
    make_run(tmp_path / "a", steps=30, evaluated_at=20)
    make_run(tmp_path / "b", steps=0, r1=None)
    first, second = table(compare([tmp_path]))
    assert first["steps"] == "30 of 40, not finished" and first["R@5 6"] == "51.0 ±2.0 at 20"
    assert second["steps"] == "0 of 40, not finished"
    assert [second[key] for key in ("R@5 6", "examples/s", "data wait", "hours", "loss")] == ["–"] * 5


def test_the_newest_evaluation_counts_and_a_damaged_one_is_told(tmp_path):
    path = make_run(tmp_path / "a", r1=10.0, evaluated_at=9)
    (path / "evals" / "30").mkdir()
    (path / "evals" / "30" / "retrieval.json").write_text(json.dumps(retrieval(20.0)))
    (path / "evals" / "40").mkdir()
    (path / "evals" / "40" / "scene_probe.json").write_text('{"rank": 3}')
    ((run,), problems) = read_runs([path])
    assert (run.retrieval.step, run.recall("image_to_text", "r1"), problems) == (30, 20.0, [])
    for text in ("{", "[]", "{}", json.dumps({**retrieval(1.0), "ci95": {}, "image_to_text": 3}),
                 json.dumps({**retrieval(1.0), "text_to_image": {"r1": "high", "r5": 1, "r10": 1}})):  # fmt: skip
        (path / "evals" / "40" / "retrieval.json").write_text(text)
        ((run,), (problem,)) = read_runs([path])
        assert run.retrieval.step == 30 and problem.endswith("40/retrieval.json is damaged: its figures are left out")


def test_intervals_may_be_missing(tmp_path):
    path = make_run(tmp_path / "a")
    (path / "evals/40/retrieval.json").write_text(json.dumps({**retrieval(20.0), "ci95": None}))
    (row,) = table(compare([path]))
    assert row["R@5 6"] == "21.0"
    make_run(tmp_path / "b", batch_size=128)
    assert quality_figure(rows_of(tmp_path)) is not None


def test_missing_and_damaged_files_cost_a_line_each_and_nothing_more(tmp_path):
    good = make_run(tmp_path / "good")
    (make_run(tmp_path / "no_metrics") / "metrics.jsonl").unlink()
    (make_run(tmp_path / "cut_record") / "run.json").write_text('{"config"')
    (make_run(tmp_path / "no_record") / "run.json").write_text("[]")
    (make_run(tmp_path / "no_devices") / "run.json").write_text('{"config": {}, "identity": {}, "devices": []}')
    for name, value in (("batch_size", "16"), ("num_devices", "two")):
        record = json.loads((make_run(tmp_path / name) / "run.json").read_text())
        record["config"][f"config.{name}"] = value
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    with (make_run(tmp_path / "cut_metrics", task__flip=1.0) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5')
    make_run(tmp_path / "not_evaluated", r1=None, task__flip=0.25)
    (tmp_path / "empty").mkdir()
    (tmp_path / "jobs.json").write_text('{"x": 1}')
    text = compare([tmp_path, good, tmp_path / "empty", tmp_path / "nowhere"], tmp_path / "out")
    assert {row["run"] for row in table(text)} == {"good", "no_metrics", "cut_metrics", "not_evaluated"}
    problems = json.loads((tmp_path / "out" / "compare.json").read_text())["problems"]
    assert all(f"- {problem}" in text.splitlines() for problem in problems)
    expected = {
        "no_metrics/metrics.jsonl: no such metrics file", "cut_record/run.json is damaged",
        "no_record/run.json is damaged", "no_devices/run.json is damaged",
        "batch_size/run.json is damaged", "num_devices/run.json is damaged",
        "cut_metrics/metrics.jsonl: 1 unreadable lines", "not_evaluated: trained to its end and without figures of",
        "empty: neither a run directory nor", "nowhere: neither a run directory nor", "jobs.json is damaged",
    }  # fmt: skip
    assert len(problems) == len(expected)
    assert all(any(part in problem for problem in problems) for part in expected), problems


def test_nothing_to_compare_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere: neither a run directory nor a directory of them"):
        compare([tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failed_and_skipped_runs_of_a_sweep_are_named(tmp_path):
    make_run(tmp_path / "a")
    records = {"a": ("finished", ""), "b": ("failed", "out of memory"), "c": ("skipped", "too large")}
    (tmp_path / "jobs.json").write_text(json.dumps({k: dict(zip(("state", "error"), v)) for k, v in records.items()}))
    text = compare([tmp_path])
    assert f"- {tmp_path / 'b'} failed: out of memory" in text and f"- {tmp_path / 'c'} skipped: too large" in text
    assert "finished:" not in text


def test_a_sweep_is_in_the_order_of_its_numbers_and_names_stay_apart(tmp_path):
    for batch in (1024, 64, 256):
        make_run(tmp_path / "x" / f"batch_size={batch}", batch_size=batch)
    make_run(tmp_path / "y" / "batch_size=64", batch_size=64, task__flip=0.0)
    names = [row["run"] for row in table(compare([tmp_path / "x", tmp_path / "y", tmp_path / "x" / "batch_size=64"]))]
    assert names == [str(tmp_path / "x/batch_size=64"), "batch_size=256", "batch_size=1024",
                     str(tmp_path / "y/batch_size=64")]  # fmt: skip


def test_names_do_not_break_the_table(tmp_path):
    make_run(tmp_path / "a|b")
    (row,) = table(compare([tmp_path]))
    assert row["run"] == "a\0b"


def test_what_does_not_compare_is_said(tmp_path):
    make_run(tmp_path / "a", device="cpu", num_devices=8)
    plain = compare([tmp_path])
    assert "say nothing about scaling" in plain
    for note in ("do not compare", "equal batches only", "same data"):
        assert note not in plain
    path = make_run(tmp_path / "b", batch_size=128)
    (path / "evals/40/retrieval.json").write_text(json.dumps(retrieval(20.0, images=1000)))
    text = compare([tmp_path])
    assert "do not compare" in text and "equal batches only" in text
    assert "made up: 500 images, 2500 captions" in text and "made up: 1000 images, 5000 captions" in text


def scaling_study(path):
    for batch in (64, 256):
        for devices, gain in ((1, 1.0), (2, 1.9), (4, 3.5)):
            make_run(path / f"batch_size={batch},num_devices={devices}", batch_size=batch, num_devices=devices,
                     speed=batch * gain, r1=40.0 + devices + batch / 64)  # fmt: skip
    make_run(path / "going", batch_size=512, steps=10, r1=99.0, num_devices=1)
    return rows_of(path)


def test_quality_is_drawn_against_the_batch_with_its_spans(tmp_path):
    figure = quality_figure(scaling_study(tmp_path))
    image_to_text, text_to_image = figure.axes
    labels = image_to_text.get_legend_handles_labels()[1]
    assert labels == ["1 device", "2 devices", "4 devices"]
    line = image_to_text.containers[1].lines[0]
    assert list(line.get_xdata()) == [64, 256] and list(line.get_ydata()) == [43.0, 46.0]
    (bars,) = image_to_text.containers[1].lines[2]
    np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], [[41, 45], [44, 48]])
    assert list(text_to_image.containers[1].lines[0].get_ydata()) == [46.0, 49.0]
    assert list(image_to_text.get_xticks()) == [64, 256], "the unfinished run is not drawn"


def test_throughput_is_drawn_beside_the_ideal_line(tmp_path):
    (axes,) = throughput_figure(scaling_study(tmp_path)).axes
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"batch 64", "batch 256", "ideal: linear from the fewest devices"}
    np.testing.assert_allclose(lines["batch 64"].get_ydata(), [64, 64 * 1.9, 64 * 3.5])
    ideals = [list(line.get_ydata()) for line in axes.lines if line.get_linestyle() == "--" and len(line.get_xdata())]
    assert [64.0, 128.0, 256.0] in ideals and [256.0, 512.0, 1024.0] in ideals
    assert list(axes.get_xticks()) == [1, 2, 4]


def test_speeds_that_lie_close_have_a_scale(tmp_path):
    for devices, speed in ((1, 1110.0), (2, 1209.0)):
        make_run(tmp_path / str(devices), num_devices=devices, speed=speed)
    figure = throughput_figure(rows_of(tmp_path))
    png_bytes(figure)  # ticks are labelled when drawn
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    labels = zip(axes.get_yticks(), axes.get_yticklabels())
    assert [text.get_text() for y, text in labels if low <= y <= high] == ["1,500", "2,000"]


def test_recipes_have_lines_of_their_own(tmp_path):
    for batch in (64, 128):
        for flip in (0.0, 0.5):
            make_run(tmp_path / f"{batch}-{flip}", batch_size=batch, task__flip=flip)
    axes = quality_figure(rows_of(tmp_path)).axes[0]
    assert axes.get_legend_handles_labels()[1] == ["flip=0.0, 1 device", "flip=0.5, 1 device"]


def test_kinds_of_devices_have_lines_of_their_own(tmp_path):
    for device in ("cpu", "TPU v5e"):
        for devices in (1, 2):
            make_run(tmp_path / f"{device}-{devices}", device=device, num_devices=devices)
    axes = throughput_figure(rows_of(tmp_path)).axes[0]
    assert axes.get_legend_handles_labels()[1][:2] == ["batch 64, TPU v5e", "batch 64, cpu"]


def test_pictures_that_would_be_one_point_are_left_out(tmp_path):
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "b", r1=None, batch_size=128)
    compare([tmp_path / "runs"], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.html", "compare.md", "compare.json"}
    assert "![" not in (tmp_path / "out" / "compare.md").read_text()


def test_what_is_written_is_what_is_said(tmp_path):
    scaling_study(tmp_path / "runs")
    text = compare([tmp_path / "runs"], tmp_path / "out")
    written = (tmp_path / "out" / "compare.md").read_text()
    assert written.startswith(text) and "![quality](quality.png)" in written
    for name in ("quality.png", "throughput.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert len(rows) == 7 and rows[0]["recall"]["image_to_text/r1"] == {"mean": 42.0, "span": [40.0, 44.0]}
    (run,) = rows[0]["runs"]
    assert (run["seed"], run["batch_size"], run["is_finished"], run["hours"]) == (42, 64, True, 40 / 3600)
