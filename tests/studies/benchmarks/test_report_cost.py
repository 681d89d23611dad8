"""The benchmark of the report's cost trains with the report and without, and measures both and a report by itself."""

import re
from pathlib import Path

import pytest

from smke_jax.errors import UserError
from smke_jax.studies.benchmarks import report_cost


def test_the_table_has_all_figures(tmp_path, monkeypatch):
    trained = []

    def train(config, overrides, workdir, *, report):
        (workdir / "evals/10").mkdir(parents=True)
        (workdir / "run.json").write_text('{"config": {"config.total_steps": 10}}')
        trained.append((workdir.name, report, overrides))
        return report_cost.Cost(4.0 if report else 2.0, 3.0 if report else 2.0)

    monkeypatch.setattr(report_cost, "train", train)
    monkeypatch.setattr(report_cost, "alone", lambda run, workdir, count: [report_cost.Cost(1.0, 0.5)] * count)
    out = tmp_path / "table.md"
    argv = ["--config=configs/scenes.py", "--config.total_steps=10", "--rounds=2", f"--out={out}"]
    assert report_cost.main(argv) == 0
    assert [report for _, report, _ in trained] == [True, True, False, True, False], "not in turns"
    assert len({name for name, _, _ in trained}) == 5, "a run went on with another"
    assert all(overrides == ["--config.total_steps=10"] for _, _, overrides in trained)
    text = out.read_text()
    assert "1 evaluations in 10 steps of `configs/scenes.py`" in text and "| ratio | 2.00 (" in text
    assert re.search(r"first report.*\| 1\.00 \| 0\.50 \|", text) and "further report | 1.00" in text


def test_a_training_that_fails_is_said(tmp_path):
    with pytest.raises(UserError, match="smke train failed: error: .*no_such.py"):
        report_cost.train("no_such.py", [], tmp_path / "run", report=True)


def test_a_report_is_made_as_often_as_asked(monkeypatch):
    made = []
    monkeypatch.setattr(report_cost, "report_run", made.append)
    assert len(report_cost.reports(Path("run"), 3)) == 3 and made == [Path("run")] * 3
