"""A run that was stopped, killed or damaged ends as one that never was: same losses, batches, bank and parameters."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import tiny

from smke_jax.__main__ import main
from smke_jax.convert.params_file import save_params
from smke_jax.data.datasets import SOURCES
from smke_jax.errors import UserError
from smke_jax.models.teachers import build_teacher
from smke_jax.training import loop
from smke_jax.training.checkpoint import Checkpointer
from smke_jax.training.loop import train_and_evaluate

pytestmark = pytest.mark.slow  # whole runs, compiled once for all of them

TOTAL = 6  # an epoch is 4 batches
PROGRAM = [sys.executable, tiny.__file__]


class Ran(NamedTuple):
    outcome: loop.Outcome | None
    ids: dict[int, list[int]]  # step -> ids of its batch
    workdir: Path


def train(workdir: Path, *, config=None, stop_at: int | None = None, crash_at: int | None = None) -> Ran:
    """Trains in this process; SIGTERM before step `stop_at` is computed, or a crash before `crash_at`."""
    ids, put = [], loop.put_batch

    def recording_put(batch, mesh):
        if "id" in batch:  # not evaluation, whose batches have no ids
            ids.append(batch["id"].tolist())
            if stop_at is not None and len(ids) == stop_at:
                signal.raise_signal(signal.SIGTERM)
            if crash_at is not None and len(ids) == crash_at:
                raise KeyboardInterrupt
        return put(batch, mesh)

    outcome = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "put_batch", recording_put)
        try:
            outcome = train_and_evaluate(config or tiny.tiny_config(), workdir)
        except KeyboardInterrupt:
            assert crash_at is not None
    first = outcome.step - len(ids) if outcome else 0
    return Ran(outcome, {first + 1 + i: row for i, row in enumerate(ids)}, workdir)


def metrics(workdir: Path, *, evaluations: bool = False) -> dict[int, dict]:
    """{step: line} without measured times; every step may stand there once only."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if ("loss" in line) != evaluations]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)), f"steps repeat or go back: {steps}"
    timing = ("examples_per_second", "data_wait", "eta_seconds", "peak_memory_gib")
    return {line["step"]: {k: v for k, v in line.items() if k not in timing} for line in lines}


def last_record(workdir: Path) -> tuple[dict, str]:
    """(digest of every array, hash of the data position) of the last step: parameters, moments, bank, rng."""
    with Checkpointer(workdir / "checkpoints", read_only=True) as checkpoints:
        record = checkpoints._record(TOTAL)
    return record["leaves"], record["data_sha256"]


def assert_ended_alike(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b) and list(metrics(a)) == list(range(1, TOTAL + 1))
    assert metrics(a, evaluations=True) == metrics(b, evaluations=True)
    one, other = last_record(a), last_record(b)
    assert one == other
    assert any("bank" in path or "slots" in path for path in one[0]["train"])
    assert len(one[0]["params"]) > 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Ran:
    """The run that nothing happened to; its third step evaluates best."""
    evaluate = loop.evaluate_retrieval

    def worse_later(*args, **kwargs):
        result, calls[0] = evaluate(*args, **kwargs), calls[0] + 1
        return result._replace(metrics={**result.metrics, "recall_sum": 600.0 - calls[0]})

    calls = [0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate_retrieval", worse_later)
        ran = train(tmp_path_factory.mktemp("whole"))
    assert ran.outcome.step == TOTAL
    return ran


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Ran:
    """Stopped at the end of the first epoch by a SIGTERM."""
    ran = train(tmp_path_factory.mktemp("stopped"), stop_at=4)
    assert ran.outcome.step == 4
    return ran


@pytest.fixture
def stopped_run(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped.workdir, tmp_path / "run"))


def test_the_whole_run_learns_and_logs(whole):
    logged = metrics(whole.workdir)
    assert list(logged) == list(range(1, TOTAL + 1))
    assert len({line["loss"] for line in logged.values()}) == TOTAL
    assert logged[1]["target_itc/bank_filled"] == 0 and logged[6]["target_itc/bank_filled"] == 1  # 40 of 5 · 8
    assert list(metrics(whole.workdir, evaluations=True)) == [3, 6]


def test_the_best_checkpoint_stays_beside_the_newest(whole):
    with Checkpointer(whole.workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [3, 4, 6] and checkpoints.best_step() == 3


def test_stop_at_an_epochs_end_and_continue(whole, stopped, stopped_run):
    assert list(metrics(stopped_run)) == [1, 2, 3, 4]
    rest = train(stopped_run)
    assert {**stopped.ids, **rest.ids} == whole.ids and list(rest.ids) == [5, 6]
    assert_ended_alike(stopped_run, whole.workdir)
    jax.tree.map(np.testing.assert_array_equal, rest.outcome.params, whole.outcome.params)


def test_stop_within_an_epoch_then_crash_then_continue(whole, tmp_path):
    first = train(tmp_path, stop_at=3)
    assert first.outcome.step == 3
    train(tmp_path, crash_at=3)  # steps 4 and 5 are done, 4 is saved
    assert list(metrics(tmp_path))[-1] == 5
    rest = train(tmp_path)
    assert list(rest.ids) == [5, 6]
    assert rest.ids == {step: whole.ids[step] for step in (5, 6)}
    assert_ended_alike(tmp_path, whole.workdir)


def test_a_finished_run_is_left_as_it_is(whole, tmp_path):
    run = Path(shutil.copytree(whole.workdir, tmp_path / "run"))
    before = (run / "metrics.jsonl").read_text()
    again = train(run)
    assert again.outcome.step == TOTAL and again.ids == {}
    assert (run / "metrics.jsonl").read_text() == before
    assert_ended_alike(run, whole.workdir)


def test_a_damaged_newest_checkpoint_falls_back_to_the_older(whole, stopped_run, caplog):
    target = max((stopped_run / "checkpoints/4").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 0x10
    target.write_bytes(content)
    rest = train(stopped_run)
    assert list(rest.ids) == [4, 5, 6]
    assert "skipping the damaged checkpoint step 4" in caplog.text
    assert (stopped_run / "checkpoints/damaged-4-0").is_dir()
    assert_ended_alike(stopped_run, whole.workdir)


def refused(workdir, config=None) -> str:
    with pytest.raises(UserError) as error:
        train_and_evaluate(config or tiny.tiny_config(), workdir)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_config_is_refused_with_the_difference(stopped_run):
    config = tiny.tiny_config()
    config.optimizer.learning_rate = 3e-4
    config.terms.itc.levels = ("out",)
    before = sorted(stopped_run.rglob("*"))
    message = refused(stopped_run, config)
    assert "config.optimizer.learning_rate: 0.0001 there, 0.0003 now" in message
    assert "config.terms.itc.levels: ['fc1', 'out'] there, ['out'] now" in message
    assert "another --workdir" in message and "batch_size" not in message
    assert sorted(stopped_run.rglob("*")) == before


def test_other_data_is_refused(stopped_run, monkeypatch):
    monkeypatch.setitem(SOURCES, "tiny", lambda data, split: tiny.TinySource(split, digest="changed"))
    message = refused(stopped_run)
    assert "data: 'tiny-train' there, 'changed-train' now" in message


def test_another_teacher_file_is_refused(tmp_path):
    config = tiny.tiny_config()
    config.teacher.checkpoint = str(tmp_path / "teacher.safetensors")
    model = build_teacher(config.teacher)

    def write(seed):
        params = model.init(jax.random.key(seed), np.zeros((1, 32, 32, 3), np.float32))["params"]
        described = {k: v for k, v in config.teacher.items() if k != "checkpoint"}
        save_params(config.teacher.checkpoint, params, {"model": described})

    write(0)
    train(tmp_path / "run", config=config, crash_at=1)
    write(1)
    assert "teacher weights: '" in refused(tmp_path / "run", config)


def start(config: Path, workdir: Path, sleep: float = 0.0) -> subprocess.Popen:
    return subprocess.Popen(
        [*PROGRAM, "train", f"--config={config}", f"--workdir={workdir}"], env={**os.environ, "TINY_SLEEP": str(sleep)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "tiny_config.py"
    path.write_text(tiny.CONFIG_FILE)
    return path


def wait_for_steps(workdir: Path, process: subprocess.Popen, steps: int) -> None:
    path = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (path.exists() and len(path.read_text().splitlines()) >= steps):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no steps after 300 s"
        time.sleep(0.01)


def test_killed_at_a_random_moment_and_run_again(whole, config_file, tmp_path):
    lines, delay = random.randint(0, 6), random.uniform(0, 1)
    process = start(config_file, tmp_path / "run", sleep=0.1)
    with process:
        wait_for_steps(tmp_path / "run", process, lines)
        time.sleep(delay)
        process.kill()
    assert main(["train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]) == 0, (lines, delay)
    assert_ended_alike(tmp_path / "run", whole.workdir)


def test_sigterm_saves_and_exits_0_and_the_same_command_continues(whole, config_file, tmp_path):
    process = start(config_file, tmp_path / "run", sleep=2.0)
    with process:
        wait_for_steps(tmp_path / "run", process, 1)
        process.terminate()
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    assert f"of {TOTAL}, saved; the same command continues" in errors and "Traceback" not in errors
    done = list(metrics(tmp_path / "run"))
    assert 1 <= done[-1] < TOTAL and (tmp_path / "run/checkpoints" / str(done[-1])).is_dir()
    assert main(["train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert_ended_alike(tmp_path / "run", whole.workdir)
