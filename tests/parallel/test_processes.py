"""Several real processes: they meet or say why not, see the same batches, stop and fail together, leave one record.

Each start costs seconds, and processes other than the first compile all anew: so two of them do one thing after the
other that needs no model, four train from start to end, and two continue a run and are stopped.
"""

import contextlib
import json
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_pairs
import workers

from smke_jax.training import loop
from smke_jax.training.checkpoint import Checkpointer
from smke_jax.training.digest import tree_digest
from smke_jax.training.loop import train_and_evaluate

pytestmark = pytest.mark.slow

TOTAL = 6  # an epoch is 4 batches
FAIL_LIMIT = 200.0  # seconds, for busy machines; jax's own waiting for others takes 300 s


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny_pairs_config.py"
    path.write_text(tiny_pairs.CONFIG_FILE)
    return path


def only_line(ended: workers.Ended, act: str = "") -> str:
    """The one line that a process which ended with a user's error, in its last act, printed in it."""
    said = ended.said(act)
    assert ended.status == 2 and len(said) == 1, ended
    return said[0]


# Without a model.


@pytest.mark.parametrize(
    "here, said",
    [(0, "error: processes 1, 2, 3 of 4 did not come within 1 s: "), (2, "error: process 0 was not at 127.0.0.1:")],
)
def test_a_missing_process_ends_the_others_with_one_line(tmp_path, config_file, here, said):
    arguments = ["train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]
    (ended,) = workers.run(tmp_path, 4, 1, *arguments, only=[here], limit=FAIL_LIMIT, SMKE_START_TIMEOUT="1")
    assert only_line(ended).startswith(said) and "SMKE_COORDINATOR" in only_line(ended)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[workers.Ended]]:
    """(folder, how they ended) of two processes with two devices each that do all without a model, and then die."""
    folder = tmp_path_factory.mktemp("two")
    acts = ["differ", "differ-in-config", "fail-together", "embed", "save", "restore", "restore-damaged-0",
            "restore-damaged-1", "own-disk", "die"]  # fmt: skip
    return folder, workers.run(folder, 2, 2, acts=acts, limit=2 * FAIL_LIMIT)


def test_what_differs_is_named_on_all_processes(two):
    for ended in two[1]:
        (refused,) = ended.noted("refused", "differ")
        assert "config.b is {'c': 0} on process 0 and {'c': 1} on process 1" in refused


def test_different_configs_are_refused_on_all_hosts(two):
    for ended in two[1]:
        (refused,) = ended.noted("refused", "differ-in-config")
        assert "config.optimizer.learning_rate is 0.001 on process 0 and 0.002 on process 1" in refused
    assert not (two[0] / "differ").exists()


def test_a_workdir_that_is_not_shared_is_refused_on_all_hosts(two):
    for ended in two[1]:
        (refused,) = ended.noted("refused", "own-disk")
        assert "disk-1/tokenizer of process 0 is not here: give a --workdir that all" in refused
    assert (two[0] / "disk-0").exists() and not (two[0] / "disk-0/run.json").exists()


def test_a_process_that_dies_does_not_leave_the_others_waiting(two):
    first, second = two[1]
    assert second.status == -signal.SIGKILL and second.noted("rows", "die")
    assert only_line(first, "die").startswith("error: lost another process of this run")


def test_each_process_reads_its_part_of_a_gallery_and_gets_the_whole(two):
    for e in two[1]:
        assert e.noted("sums") == [[4 * 4 * 10 * i * 2 for i in range(1, 12)]], e
    assert [sorted(e.noted("read")) for e in two[1]] == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10]]


def test_digests_of_sharded_arrays_are_those_of_whole_ones(two):
    params, train = workers.arrays()
    with Checkpointer(two[0] / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [1, 2] and checkpoints.best_step() == 2
        leaves = checkpoints._record(1)["leaves"]
    digests = {item: {name: digest for name, (_, digest) in leaves[item].items()} for item in leaves}
    assert digests == {"params": tree_digest(params), "train": tree_digest(train)}


def test_what_two_processes_saved_one_restores(two):
    params, train = workers.arrays()
    with Checkpointer(two[0] / "checkpoints", read_only=True) as checkpoints:
        found = checkpoints.restore_latest(params, train)
    assert found.step == 2 and found.data == {"next": 2}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), (found.params, found.train), (params, train))


@pytest.mark.parametrize("whose", [None, 0, 1])
def test_two_processes_restore_and_skip_what_one_of_them_cannot_read(two, whose):
    act, step = ("restore", 2) if whose is None else (f"restore-damaged-{whose}", 1)
    for ended in two[1]:
        (noted,) = (note for note in ended.notes if note["act"] == act)
        restored = {"restored": step, "same": [True] * 3, "data": {"next": step}, "steps": [*range(1, step + 1)]}
        assert noted == {"act": act, **restored}
        skipped = any("skipping the damaged checkpoint step 2" in line for line in ended.said(act))
        assert skipped == (whose is not None)
    assert (two[0] / f"damaged-{whose}" / "damaged-2-0").exists() == (whose is not None)


# Whole runs.

KEEP = "--config.checkpoint.keep=5"


def train_here(workdir: Path) -> dict[int, list[int]]:
    """Trains the tiny pairs in this process on one device, from what is in `workdir`; {step: ids of its batch}."""
    config = tiny_pairs.tiny_pairs()
    config.update(num_devices=1)
    config.log.every, config.checkpoint.keep = 1, 5
    ids, put = [], loop.put_batch

    def noting_put(batch, mesh):
        ids.append(batch["id"].tolist())
        return put(batch, mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "put_batch", noting_put)
        assert train_and_evaluate(config, workdir).step == TOTAL
    return {TOTAL - len(ids) + 1 + i: row for i, row in enumerate(ids)}


def start_training(folder: Path, config_file: Path, count: int, devices: int, **more):
    arguments = [f"--config={config_file}", f"--workdir={folder / 'run'}", "--config.num_devices=0", KEEP]
    return workers.start(folder, count, devices, "train", *arguments, "--config.log.every=1", **more)


def global_ids(ended: list[workers.Ended], first: int = 1) -> dict[int, list[int]]:
    """{step: ids of the global batch}, one process's rows after the other's."""
    assert len({len(e.noted("ids")) for e in ended}) == 1
    return {first + i: sum(shares, []) for i, shares in enumerate(zip(*(e.noted("ids") for e in ended)))}


def losses(workdir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def recalls(workdir: Path) -> list[dict]:
    return [json.loads((workdir / f"evals/{step}/retrieval.json").read_text()) for step in (3, TOTAL)]


def files(workdir: Path) -> set[str]:
    """All of a run's files but those that checkpoints are made of."""
    return {str(path.relative_to(workdir)) for path in workdir.rglob("*")
            if path.is_file() and "checkpoints" not in path.relative_to(workdir).parts}  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, dict[int, list[int]]]:
    workdir = tmp_path_factory.mktemp("alone") / "run"
    return workdir, train_here(workdir)


@pytest.fixture(scope="module")
def four(tmp_path_factory, config_file) -> tuple[Path, list[workers.Ended]]:
    """(folder, how they ended) of four processes with a device each that train, are stopped and fail."""
    folder = tmp_path_factory.mktemp("four")
    acts = ["fail-together", "be-stopped", "fail-alone"]
    return folder, workers.finish(folder, start_training(folder, config_file, 4, 1, acts=acts))


def test_a_run_of_several_processes_is_the_run_of_one(alone, four):
    (whole, ids), (folder, ended) = alone, four
    assert [e.noted("status") for e in ended] == [[0]] * 4, ended
    assert global_ids(ended) == ids and len(ids) == TOTAL
    assert losses(folder / "run") == pytest.approx(losses(whole), rel=1e-5)
    assert files(folder / "run") == files(whole)
    assert recalls(folder / "run") == recalls(whole)
    wrote = [{path for path in e.noted("wrote") if not path.startswith("checkpoints")} for e in ended]
    assert any("run.json" in path for path in wrote[0]) and "metrics.jsonl" in wrote[0]
    assert wrote[1:] == [set()] * 3


def test_an_error_of_one_host_reaches_all_of_them(two, four):
    for ended in (two[1], four[1]):
        refused = [e.noted("refused", "fail-together") for e in ended]
        assert refused.pop(1) == ["no data here"]
        assert refused == [["process 1: no data here"]] * len(refused)
        assert [e.noted("reached") for e in ended] == [[i] for i in range(len(ended))]


def test_sigterm_stops_all_at_the_same_step(four):
    ((turn,), *others) = (e.noted("stopped") for e in four[1])
    assert 4 <= turn < 600 and others == [[turn]] * 3


def test_a_process_that_fails_does_not_leave_the_others_waiting(four):
    first, second, *others = four[1]
    assert only_line(second, "fail-alone") == "error: something of mine"
    for ended in (first, *others):
        assert only_line(ended, "fail-alone").startswith("error: lost another process of this run")
        rows = [[0, turn, 10, turn, 20, turn, 30, turn] for turn in (0, 1)]
        assert ended.noted("rows", "fail-alone")[:2] == rows


def test_eight_devices_continue_what_one_saved_and_one_what_eight_saved_at_a_sigterm(alone, tmp_path, config_file):
    whole, ids = alone
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(run / "evals")
    for step in (3, 4, TOTAL):
        shutil.rmtree(run / "checkpoints" / str(step))
    processes = start_training(tmp_path, config_file, 2, 4, TINY_SLEEP="1")
    deadline, last = time.monotonic() + workers.LIMIT, TOTAL
    while not 2 < last < TOTAL and time.monotonic() < deadline:
        assert processes[1].poll() is None, (tmp_path / "err-1").read_text()
        time.sleep(0.05)
        with contextlib.suppress(ValueError):  # while the lines after the checkpoint are taken off
            last = max(losses(run))
    processes[1].send_signal(signal.SIGTERM)
    ended = workers.finish(tmp_path, processes)
    assert [e.status for e in ended] == [0, 0], ended
    done = global_ids(ended, first=3)
    last = max(done)
    assert 3 <= last < TOTAL and list(losses(run)) == [1, 2, *done]
    assert (run / "checkpoints" / str(last)).is_dir()
    rest = train_here(run)
    assert list(rest) == list(range(last + 1, TOTAL + 1))
    assert done | rest == {step: ids[step] for step in range(3, TOTAL + 1)}
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5) and len(losses(run)) == TOTAL
    assert recalls(run) == recalls(whole) and files(run) == files(whole)
