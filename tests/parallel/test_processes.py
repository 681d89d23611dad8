"""Several real processes: they meet or say why not, see the same batches, stop and fail together, leave one record."""

import json
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
import workers

from smke_jax.training import loop
from smke_jax.training.checkpoint import Checkpointer
from smke_jax.training.digest import tree_digest
from smke_jax.training.loop import train_and_evaluate

TOTAL = 6  # an epoch is 4 batches
FAIL_LIMIT = 200.0  # seconds, for busy machines; jax's own waiting for others takes 300 s


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "tiny_config.py"
    path.write_text(tiny.CONFIG_FILE)
    return path


def only_line(ended: workers.Ended) -> str:
    """The one line that a process which ended with a user's error printed."""
    assert ended.status == 2 and len(ended.errors) == 1, ended
    return ended.errors[0]


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


def test_what_differs_is_named_on_all_processes(tmp_path):
    for ended in workers.run(tmp_path, 2, 1, "differ", limit=FAIL_LIMIT):
        assert "config.b is {'c': 0} on process 0 and {'c': 1} on process 1" in only_line(ended)


def test_an_error_of_one_host_ends_all_of_them(tmp_path):
    first, second, third = workers.run(tmp_path, 3, 1, "fail-together", limit=FAIL_LIMIT)
    assert only_line(first) == only_line(third) == "error: process 1: no data here"
    assert only_line(second) == "error: no data here"
    assert [ended.noted("reached") for ended in (first, second, third)] == [[0], [1], [2]]


def test_a_process_that_fails_does_not_leave_the_others_waiting(tmp_path):
    first, second, third = workers.run(tmp_path, 3, 1, "fail-alone", limit=FAIL_LIMIT)
    assert only_line(second) == "error: something of mine"
    for ended in (first, third):
        assert only_line(ended).startswith("error: lost another process of this run")
        assert ended.noted("rows")[:2] == [[0, 0, 10, 0, 20, 0], [0, 1, 10, 1, 20, 1]]


def test_a_process_that_dies_does_not_leave_the_others_waiting(tmp_path):
    first, second = workers.run(tmp_path, 2, 1, "die", limit=FAIL_LIMIT)
    assert second.status == -signal.SIGKILL
    assert only_line(first).startswith("error: lost another process of this run")


def test_sigterm_stops_all_at_the_same_step(tmp_path):
    ended = workers.run(tmp_path, 3, 1, "be-stopped", limit=FAIL_LIMIT)
    assert [e.status for e in ended] == [0, 0, 0]
    ((turn,), *others) = (e.noted("stopped") for e in ended)
    assert 4 <= turn < 600 and others == [[turn], [turn]]


def test_each_process_reads_its_part_of_a_gallery_and_gets_the_whole(tmp_path):
    ended = workers.run(tmp_path, 2, 1, "embed", limit=FAIL_LIMIT)
    for e in ended:
        assert e.noted("sums") == [[4 * 4 * 10 * i * 2 for i in range(1, 12)]], e
    assert [sorted(e.noted("read")) for e in ended] == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Checkpoints of steps 1 and 2, of arrays that no process holds whole."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "checkpoints").mkdir()
    ended = workers.run(folder, 2, 2, "save", str(folder / "checkpoints"), limit=FAIL_LIMIT)
    assert [e.status for e in ended] == [0, 0], ended
    return folder / "checkpoints"


def test_digests_of_sharded_arrays_are_those_of_whole_ones(saved):
    params, train = workers.arrays()
    with Checkpointer(saved, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1, 2] and checkpoints.best_step() == 2
        leaves = checkpoints._record(1)["leaves"]
    digests = {item: {name: digest for name, (_, digest) in leaves[item].items()} for item in leaves}
    assert digests == {"params": tree_digest(params), "train": tree_digest(train)}


def test_what_two_processes_saved_one_restores(saved):
    params, train = workers.arrays()
    with Checkpointer(saved, read_only=True) as checkpoints:
        found = checkpoints.restore_latest(params, train)
    assert found.step == 2 and found.data == {"next": 2}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), (found.params, found.train), (params, train))


@pytest.mark.parametrize("whose", [None, 0, 1])
def test_two_processes_restore_and_skip_what_one_of_them_cannot_read(saved, tmp_path, whose):
    run = Path(shutil.copytree(saved, tmp_path / "checkpoints"))
    if whose is not None:
        files = (run / "2/params" / f"ocdbt.process_{whose}" / "d").iterdir()
        with open(max(files, key=lambda path: path.stat().st_size), "r+b") as file:
            file.truncate(1000)
    first, second = workers.run(tmp_path, 2, 2, "restore", str(run), limit=FAIL_LIMIT)
    step = 2 if whose is None else 1
    for ended in (first, second):
        assert ended.status == 0, ended
        assert ended.notes == [
            {"restored": step, "same": [True] * 3, "data": {"next": step}, "steps": [*range(1, step + 1)]}
        ]
        assert any("skipping the damaged checkpoint step 2" in line for line in ended.errors) == (whose is not None)
    assert (run / "damaged-2-0").exists() == (whose is not None)


# Whole runs.


def train_here(workdir: Path) -> dict[int, list[int]]:
    """Trains the tiny recipe in this process on one device, from what is in `workdir`; {step: ids of its batch}."""
    config = tiny.tiny_config()
    config.update(num_devices=1)
    config.log.every = 1
    ids, put = [], loop.put_batch

    def noting_put(batch, mesh):
        ids.append(batch["id"].tolist())
        return put(batch, mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "put_batch", noting_put)
        assert train_and_evaluate(config, workdir).step == TOTAL
    return {TOTAL - len(ids) + 1 + i: row for i, row in enumerate(ids)}


def start_training(folder: Path, config_file: Path, count: int, devices: int, **more):
    arguments = [f"--config={config_file}", f"--workdir={folder / 'run'}", "--config.num_devices=0"]
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


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_a_run_of_several_processes_is_the_run_of_one(alone, tmp_path, config_file, count):
    whole, ids = alone
    ended = workers.finish(tmp_path, start_training(tmp_path, config_file, count, 1))
    assert [e.status for e in ended] == [0] * count, ended
    assert global_ids(ended) == ids and len(ids) == TOTAL
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-5)
    assert files(tmp_path / "run") == files(whole)
    assert recalls(tmp_path / "run") == recalls(whole)
    wrote = [{path for path in e.noted("wrote") if not path.startswith("checkpoints")} for e in ended]
    assert any("run.json" in path for path in wrote[0]) and "metrics.jsonl" in wrote[0]
    assert wrote[1:] == [set()] * (count - 1)


@pytest.mark.slow
def test_sigterm_to_one_saves_all_and_one_device_continues_what_eight_saved(alone, tmp_path, config_file):
    whole, ids = alone
    run = tmp_path / "run"
    processes = start_training(tmp_path, config_file, 2, 4, TINY_SLEEP="0.5")
    deadline = time.monotonic() + workers.LIMIT
    while not ((run / "metrics.jsonl").exists() and losses(run)) and time.monotonic() < deadline:
        assert processes[1].poll() is None, (tmp_path / "err-1").read_text()
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    ended = workers.finish(tmp_path, processes)
    assert [e.status for e in ended] == [0, 0], ended
    done = global_ids(ended)
    last = max(done)
    assert 1 <= last < TOTAL and list(losses(run)) == list(done)
    assert (run / "checkpoints" / str(last)).is_dir()
    rest = train_here(run)
    assert list(rest) == list(range(last + 1, TOTAL + 1)) and {**done, **rest} == ids
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5) and len(losses(run)) == TOTAL


@pytest.mark.slow
def test_eight_devices_of_two_processes_continue_what_one_saved(alone, tmp_path, config_file):
    whole, ids = alone
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / str(TOTAL))
    assert "4" in {path.name for path in (run / "checkpoints").iterdir()}
    ended = workers.finish(tmp_path, start_training(tmp_path, config_file, 2, 4))
    assert [e.status for e in ended] == [0, 0], ended
    assert global_ids(ended, first=5) == {step: ids[step] for step in (5, 6)}
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)


def test_different_configs_are_refused_on_all_hosts(tmp_path, config_file):
    rates = lambda i: {"config.optimizer.learning_rate": 1e-4 * (i + 1)}  # noqa: E731
    for ended in workers.finish(tmp_path, start_training(tmp_path, config_file, 2, 1, each=rates), FAIL_LIMIT):
        assert "config.optimizer.learning_rate is 0.0001 on process 0 and 0.0002 on process 1" in only_line(ended)
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_not_shared_is_refused_on_all_hosts(tmp_path, config_file):
    own = lambda i: {"workdir": tmp_path / f"disk-{i}"}  # noqa: E731
    for ended in workers.finish(tmp_path, start_training(tmp_path, config_file, 2, 1, each=own), FAIL_LIMIT):
        assert "disk-1/tokenizer of process 0 is not here: give a --workdir that all" in only_line(ended)
    assert not (tmp_path / "disk-0/run.json").exists()
