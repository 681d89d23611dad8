"""configs/finetune_text.py in its smallest form: it trains, goes on, is evaluated, and says what a folder lacks."""

import json

import jax
import numpy as np
import pytest

from smke_jax.__main__ import main
from smke_jax.config_files import load_config
from smke_jax.data import datasets
from smke_jax.data.glue import GLUE
from smke_jax.data.scenes import make_scenes
from smke_jax.errors import UserError
from smke_jax.training.loop import train_and_evaluate

SCENES = make_scenes(48, 21)


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(datasets, "scenes", lambda *_: SCENES)


def config(kind: str, **fields):
    c = load_config(f"configs/finetune_text.py:{kind},smoke")
    c.update({"num_devices": 1, "batch_size": 8, "eval_batch_size": 8} | fields)
    c.task.vocab_size, c.task.max_length, c.log.report = 120, 16, False
    c.networks.text.model.update(width=16, mlp_dim=24)
    c.networks.text.dtype = "float32"
    return c


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_pairs_are_the_same_on_1_and_8_devices_and_go_on_where_they_stopped(tmp_path):
    def run(name, steps=4, **fields):
        c = config("rte", total_steps=4, **fields)
        c.networks.text.head_dropout = 0.0  # what is dropped depends on the rows of a device
        c.optimizer.learning_rate, c.checkpoint.every = 1e-2, 2
        if steps < 4:
            with pytest.raises(KeyboardInterrupt):
                stopping(c, tmp_path / name, steps)
        return train_and_evaluate(c, tmp_path / name)

    one, eight = run("one"), run("eight", num_devices=8)
    resumed = run("resumed", steps=3)
    losses = [row["loss"] for row in rows(tmp_path / "one") if "loss" in row]
    assert len(losses) == 4 and losses[0] == pytest.approx(np.log(2), rel=0.2)
    np.testing.assert_allclose([row["loss"] for row in rows(tmp_path / "eight") if "loss" in row], losses, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), one.params, eight.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, resumed.params)
    types = one.params["text"]["encoder"]["type_embedding"]
    assert np.any(np.asarray(types)[1] != 0)


def stopping(c, workdir, steps: int) -> None:
    """Trains `c` and stops like somebody who presses Ctrl-C before step `steps`."""
    from smke_jax.training import loop

    count, put = iter(range(steps)), loop.put_batch

    def counted(batch, mesh):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return put(batch, mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "put_batch", counted)
        train_and_evaluate(c, workdir)


@pytest.mark.parametrize("kind", sorted(GLUE))
def test_the_best_epoch_is_chosen_among_all(kind):
    """A run of any task keeps and measures every epoch; no task is so small that it ends before the first."""
    c = load_config(f"configs/finetune_text.py:{kind}")
    every = c.checkpoint.every
    assert {own.every for own in c.evaluators.values()} == {every} and c.total_steps // every in (10, 20)
    rows = {"cola": 8_551, "rte": 2_490, "stsb": 5_749, "wnli": 635, "sst2": 67_349, "qnli": 104_743, "mnli": 392_702}
    if kind in rows:
        assert every == pytest.approx(rows[kind] / c.batch_size, abs=1)
    small = load_config(f"configs/finetune_text.py:{kind},flickr8k")
    assert {own.every for own in small.evaluators.values()} == {small.checkpoint.every}
    assert small.checkpoint.every == pytest.approx(every * c.batch_size / small.batch_size, abs=1)


def test_a_score_is_trained_and_evaluated_and_the_report_has_it(tmp_path, capsys):
    workdir = tmp_path / "stsb"
    c = config("stsb")
    c.log.report = True
    outcome = train_and_evaluate(c, workdir)
    figures = json.loads((workdir / "evals/2/dev.json").read_text())
    assert figures["rows"] == 21 and set(figures["ci95"]) == {"spearman", "pearson"}
    assert outcome.figures["dev"].scalars["spearman"] == figures["spearman"]
    assert len(figures["samples"]["wrong"]) == 5 and len(figures["samples"]["wrong"][0]["sentences"]) == 2
    report = (workdir / "report.md").read_text()
    worst = figures["samples"]["wrong"][0]["sentences"]
    assert "Trained on 48 rows of scenes train." in report
    assert "## Sentences (dev, step 2)" in report and f"| wrong | {' — '.join(worst)}" in report
    assert main(["evaluate", f"--workdir={workdir}", "--split=train", "--config.evaluators.dev.metrics=pearson"]) == 0
    assert "scenes train, 48 rows" in capsys.readouterr().out
    (written,) = (workdir / "evals/2").glob("dev-train-metrics=*.json")
    written = json.loads(written.read_text())
    assert set(written["ci95"]) == {"pearson"} and written["rows"] == 48


def test_a_run_of_files_is_evaluated_on_another_folder(tmp_path, capsys):
    for name, count in (("ours", 12), ("theirs", 7)):
        (tmp_path / name).mkdir()
        lines = [f"x\t{i % 2}\t\tthe {'ball is blue' if i % 2 else 'blue ball the'} {i}" for i in range(count)]
        for split in ("train", "dev"):
            (tmp_path / name / f"{split}.tsv").write_text("\n".join(lines))
    c = config("cola")
    c.task.update(files="glue", data=str(tmp_path / "ours"))
    c.evaluators.dev.split = "dev"
    train_and_evaluate(c, tmp_path / "run")
    assert json.loads((tmp_path / "run/evals/2/dev.json").read_text())["rows"] == 12
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}", f"--data={tmp_path / 'theirs'}"]) == 0
    found = json.loads((tmp_path / "run/evals/2/dev-theirs.json").read_text())
    assert found["rows"] == 7 and np.sum(found["confusion"]) == 7
    assert main(["export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'export'}"]) == 0
    assert "on 8 texts of cola dev" in capsys.readouterr().out

    (tmp_path / "ours/dev.tsv").unlink()
    c.total_steps = 1
    with pytest.raises(UserError, match="no dev.tsv or in_domain_dev.tsv in .*ours: give the folder of cola's files"):
        train_and_evaluate(c, tmp_path / "missing")
    assert not (tmp_path / "missing" / "run.json").exists()
