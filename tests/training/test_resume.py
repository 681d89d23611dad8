"""A run that was stopped, killed or damaged ends as one that never was: same losses, batches, banks and parameters."""

import json
import logging
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
import jax.numpy as jnp
import numpy as np
import pytest
import two_matrices
from two_matrices import two_matrices_config

from smke_jax.convert.params_file import save_params
from smke_jax.errors import UserError
from smke_jax.objectives import TERMS
from smke_jax.objectives.base import Term
from smke_jax.parts import part
from smke_jax.training import loop
from smke_jax.training.checkpoint import Checkpointer
from smke_jax.training.loop import train_and_evaluate

TOTAL = 6  # an epoch is 4 batches


def toggles() -> Term:
    """A term whose state is a truth value and a number that no gradient moves."""

    def init(key, shapes):
        return {"w": jnp.ones(())}, {"odd": jnp.zeros((), bool), "count": jnp.zeros((), jnp.int32)}

    def value(params, slots, reps, scope):
        return params["w"] * jnp.mean(reps["image/out"]) * jnp.where(slots["odd"], 0.1, -0.1), {}

    def update(slots, reps):
        return {"odd": ~slots["odd"], "count": slots["count"] + 1}

    return Term(("image/out",), init, value, update)


def config():
    """Everything that a run can keep: a bank, a moving average with a bank of its keys, a bank of all images, …"""
    TERMS["toggles"] = toggles
    c = two_matrices_config()
    c.networks.momentum = part("average", of="net", decay=0.8)
    c.terms.bank_itc = part("bank_itc", levels=("out",), keys="momentum/", bank_size=21)
    c.terms.proximal_itc = part("proximal_itc")
    c.terms.toggles = part("toggles")
    return c


class Ran(NamedTuple):
    outcome: loop.Outcome | None
    ids: dict[int, list[int]]  # step -> ids of its batch
    workdir: Path


def train(workdir: Path, *, changed=None, stop_at: int | None = None, crash_at: int | None = None) -> Ran:
    """Trains in this process; SIGTERM before step `stop_at` is computed, or a crash before `crash_at`."""
    ids, put = [], loop.put_batch

    def recording_put(batch, mesh):
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
            outcome = train_and_evaluate(changed or config(), workdir)
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
    """(digest of every array, hash of the data position) of the last step: parameters, moments, banks, rng."""
    with Checkpointer(workdir / "checkpoints", read_only=True) as checkpoints:
        record = checkpoints._record(TOTAL)
    return record["leaves"], record["data_sha256"]


def assert_ended_alike(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b) and list(metrics(a)) == list(range(1, TOTAL + 1))
    assert metrics(a, evaluations=True) == metrics(b, evaluations=True)
    one, other = last_record(a), last_record(b)
    assert one == other
    kept = " ".join(one[0]["train"])
    banks = ("target_itc/features", "bank_itc/text/out/ids", "proximal_itc/ids")
    for what in (*banks, "toggles/odd", "averages/momentum"):
        assert what in kept
    assert {"net/image/kernel", "terms/toggles/w"} <= set(one[0]["params"])


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    with pytest.MonkeyPatch.context() as patch:
        two_matrices.keep_programs(patch)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Ran:
    """The run that nothing happened to."""
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
    assert logged[1]["target_itc/bank_filled"] == 0 and logged[6]["target_itc/bank_filled"] == 1  # 20 of 5 · 8
    assert list(metrics(whole.workdir, evaluations=True)) == [3, 6]
    ids = [i for step in (1, 2, 3, 4) for i in whole.ids[step]]
    assert sorted(ids) == sorted([*range(16)] * 2) and ids != sorted(ids), "an epoch is every row once, shuffled"


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


def test_data_that_cannot_be_read_costs_no_steps(tmp_path):
    """What is done is saved before the run stops, at a step that is no multiple of `checkpoint.every`."""
    broken = config()
    broken.task.damaged_at = 4
    with pytest.raises(UserError, match="batch 4 is damaged"):
        train_and_evaluate(broken, tmp_path)
    with Checkpointer(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == 3


# ---- what may change when a run is continued, and what may not


def refused(workdir, changed) -> str:
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        train_and_evaluate(changed, workdir)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    return str(error.value)


def test_another_config_is_refused_with_the_difference(stopped_run):
    changed = config()
    changed.optimizer.learning_rate = 3e-4
    changed.terms.bank_itc.levels = ("head",)
    changed.seed = 7
    message = refused(stopped_run, changed)
    assert "config.optimizer.learning_rate: 0.01 there, 0.0003 now" in message
    assert "config.terms.bank_itc.levels: ['out'] there, ['head'] now" in message and "config.seed: 42" in message
    assert "another --workdir" in message and "batch_size" not in message
    without = config()
    del without.terms.toggles
    assert "config.terms.toggles.type: 'toggles' there, None now" in refused(stopped_run, without)


def test_other_data_is_refused(stopped_run):
    changed = config()
    changed.task.digest = "changed"
    assert "data: 'vectors' there, 'changed' now" in refused(stopped_run, changed)


def test_what_does_not_change_the_learning_may_change(whole, stopped_run):
    changed = config()
    changed.log.every = 2
    changed.checkpoint.update(every=3, keep=1)
    changed.update(profile_steps=(6, 6), eval_batch_size=4, num_devices=1, loss_impl="ring", micro_batch=2)
    changed.evaluators.retrieval.update(level="head", every=0)
    changed.evaluators.second = part("retrieval", split="train")
    rest = train(stopped_run, changed=changed)
    assert rest.outcome.step == TOTAL and set(rest.outcome.figures) == {"retrieval", "second"}
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(near, rest.outcome.params, whole.outcome.params)


def test_weights_may_move_and_not_change(tmp_path):
    def at(path, seed):
        kernel = np.random.default_rng(seed).normal(size=(6, 4)).astype(np.float32)
        save_params(path, {"kernel": kernel}, {"model": {}})
        c = config()
        c.networks.target.start = str(path)
        return c

    train(tmp_path / "run", changed=at(tmp_path / "a.safetensors", 0), stop_at=1)
    assert train(tmp_path / "run", changed=at(tmp_path / "b.safetensors", 0), stop_at=1).outcome.step == 2
    message = refused(tmp_path / "run", at(tmp_path / "a.safetensors", 1))
    assert "target weights: '" in message and "start" not in message


# ---- a folder that is no run


@pytest.mark.parametrize("content", ["params.safetensors", "photo.jpg", "metrics.jsonl", "tokenizer/vocab.txt"])
def test_a_folder_with_something_else_is_refused_before_anything_is_written(tmp_path, content):
    (tmp_path / content).parent.mkdir(exist_ok=True)
    (tmp_path / content).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert f"{tmp_path} is no run, it holds {content.split('/')[0]}" in refused(tmp_path, config())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_as_the_folder_of_a_run_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="run is a file: give a folder as --workdir"):
        train_and_evaluate(config(), tmp_path / "run")


# ---- real signals to real processes


def start(workdir: Path, sleep: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, two_matrices.__file__, str(workdir)], env={**os.environ, "STEP_SLEEP": str(sleep)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_steps(workdir: Path, process: subprocess.Popen, steps: int) -> None:
    path = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (path.exists() and len(path.read_text().splitlines()) >= steps):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no steps after 300 s"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def simple(tmp_path_factory) -> Path:
    """The run of two_matrices.py that nothing happened to."""
    workdir = tmp_path_factory.mktemp("simple")
    train_and_evaluate(two_matrices_config(), workdir)
    return workdir


def assert_same_end(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b) and metrics(a, evaluations=True) == metrics(b, evaluations=True)
    assert last_record(a) == last_record(b)


def test_killed_at_a_random_moment_and_run_again(simple, tmp_path):
    lines, delay = random.randint(0, 6), random.uniform(0, 1)
    logging.getLogger("smke_jax").warning("killed %.2f s after line %d", delay, lines)
    process = start(tmp_path / "run", sleep=0.1)
    with process:
        wait_for_steps(tmp_path / "run", process, lines)
        time.sleep(delay)
        process.kill()
    train_and_evaluate(two_matrices_config(), tmp_path / "run")
    assert_same_end(tmp_path / "run", simple)


def test_sigterm_saves_and_exits_0_and_the_same_command_continues(simple, tmp_path):
    process = start(tmp_path / "run", sleep=1.0)
    with process:
        wait_for_steps(tmp_path / "run", process, 1)
        process.terminate()
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    assert f"of {TOTAL}, saved; the same command continues" in errors and "Traceback" not in errors
    done = list(metrics(tmp_path / "run"))
    assert 1 <= done[-1] < TOTAL and (tmp_path / "run/checkpoints" / str(done[-1])).is_dir()
    train_and_evaluate(two_matrices_config(), tmp_path / "run")
    assert_same_end(tmp_path / "run", simple)
