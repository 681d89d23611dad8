"""The report while a run is trained: there after its evaluations, rarely, and never the end of the run."""

import json
import logging

import tiny_pairs
from pages import Page
from two_matrices import two_matrices_config

from smke_jax.__main__ import main
from smke_jax.evaluators.base import Figures
from smke_jax.parts import departures
from smke_jax.training import loop, report
from smke_jax.training.report import Reporter


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_run_leaves_its_report(tmp_path, caplog):
    """With real pictures and captions, which the evaluator shows."""
    config = tiny_pairs.tiny_pairs()
    config.log.report, config.total_steps, config.evaluators.retrieval.every = True, 3, 1
    with caplog.at_level(logging.WARNING, "smke_jax"):
        loop.train_and_evaluate(config, tmp_path)
    assert not [r for r in caplog.records if "no report" in r.getMessage()], caplog.text
    page = Page(tmp_path / "report.html")
    assert page.has("Step 3 of 3, finished.") and page.has("Trained on 16 images with 32 captions of tiny.")
    assert page.has("Captions and the images found for them (retrieval, step 3)")
    assert not page.has("Not recorded")
    assert len(page.sources()) == 6 * 5 + 6  # the split has six images
    assert "| batch_size" in (tmp_path / "report.md").read_text()
    said = json.loads((tmp_path / "run.json").read_text())["data"]
    assert said[0] == {"split": "train", "data": "tiny", "images": 16, "captions": 32}
    (tmp_path / "report.html").unlink()
    assert main(["report", str(tmp_path)]) == 0 and Page(tmp_path / "report.html").has("Step 3 of 3")


def test_a_report_that_fails_is_said_in_one_line_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    config = two_matrices_config()
    config.log.report = True

    def fails(workdir):
        raise ZeroDivisionError("a bug in a picture")

    monkeypatch.setattr(report, "report_run", fails)
    with caplog.at_level(logging.WARNING, "smke_jax"):
        outcome = loop.train_and_evaluate(config, tmp_path)
    assert outcome.step == 6
    said = [r.getMessage() for r in caplog.records if "report" in r.getMessage()]
    assert said[-1] == "step 6: no report (ZeroDivisionError: a bug in a picture); the run goes on"
    assert not (tmp_path / "report.html").exists()


def test_examples_that_fail_are_said_in_one_line_and_the_run_goes_on(tmp_path, caplog):
    """As where a photo cannot be read any more."""

    def unreadable():
        raise OSError("photo 3 is gone")

    reporter, figures = Reporter(tmp_path), Figures({}, {})
    with caplog.at_level(logging.WARNING, "smke_jax"):
        reporter.keep_examples("retrieval", 6, figures)
        assert not caplog.records
        reporter.keep_examples("retrieval", 6, figures._replace(examples=unreadable))
    (said,) = [r.getMessage() for r in caplog.records]
    assert said == "step 6: no examples of retrieval (OSError: photo 3 is gone); the run goes on"


def test_log_report_turns_it_off(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(report, "report_run", made.append)
    loop.train_and_evaluate(two_matrices_config(), tmp_path)  # its config has log.report=False
    assert not made and (tmp_path / "evals").is_dir()


def test_reports_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    """Evaluated every 10 s, reports of 2 s are made every 40 s, a twentieth of the time, and at the end."""
    clock, made = Clock(), []

    def two_seconds(workdir):
        made.append(clock.now)
        clock.now += 2.0

    monkeypatch.setattr(report, "report_run", two_seconds)
    reporter = Reporter(tmp_path, clock)
    for step in range(1, 11):
        clock.now = 10.0 * step
        reporter.evaluated(step, last=step == 10)
    assert made == [10.0, 60.0, 100.0]


def test_departures_are_the_fields_that_differ():
    config = tiny_pairs.tiny_pairs()
    found = departures(config)
    assert found["config.batch_size"] == (8, 256) and found["config.checkpoint.every"] == (2, 1000)
    assert found["config.task.source"] == ("tiny", "prepared")
    assert found["config.evaluators.retrieval.every"] == (3, 0)
    assert found["config.terms.itc.levels"] == (("out",), ("fc1", "out"))
    assert not {"config.seed", "config.task.type", "config.terms.itc.weight", "config.log.tensorboard"} & set(found)
