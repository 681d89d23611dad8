"""Where a process learns its place among the others; what real processes do then is in test_processes.py."""

import importlib.util
import logging
import os
import signal
import subprocess
import sys

import jax
import pytest

from smke_jax.errors import UserError
from smke_jax.parallel import process
from smke_jax.parallel.process import check_same, failing_together, leaving_on_error, start_processes, stop_requests


@pytest.fixture
def joined(monkeypatch) -> list:
    """What jax and `meet` are called with; nothing is started."""
    calls = []
    for name in [name for name in os.environ if name.startswith(("SMKE_", "SLURM_", "TPU_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # as jax sets it on machines without TPUs
    monkeypatch.setattr(process, "meet", lambda *place, timeout: calls.append(("meet", *place, timeout)))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **options: calls.append((*place, options)))
    return calls


def environment(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setenv(name, value)


PLACE = {"SMKE_COORDINATOR": "node1:9876", "SMKE_NUM_PROCESSES": "4", "SMKE_PROCESS_ID": "0"}


def test_one_process_starts_nothing(joined, monkeypatch):
    start_processes()
    environment(monkeypatch, SLURM_NTASKS="1", SLURM_PROCID="0", TPU_WORKER_HOSTNAMES="localhost")
    start_processes()
    environment(monkeypatch, SLURM_NTASKS="8", SMKE_NUM_PROCESSES="1")
    start_processes()
    assert not joined


def test_the_place_from_the_environment(joined, monkeypatch):
    environment(monkeypatch, **PLACE, SMKE_START_TIMEOUT="7", SLURM_NTASKS="2", SLURM_PROCID="1")
    start_processes()
    assert joined[0] == ("meet", "node1:9876", 4, 0, 7.0)
    # Without SLURM's detection, which would show each process one device only.
    assert joined[1] == ("node1:9876", 4, 0, {"cluster_detection_method": "deactivate", "initialization_timeout": 67})


def test_what_is_given_goes_before_the_environment(joined, monkeypatch):
    environment(monkeypatch, **PLACE | {"SMKE_PROCESS_ID": "3"})
    start_processes("node2:1", 2, 0)
    assert joined[0][:4] == ("meet", "node2:1", 2, 0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"SMKE_PROCESS_ID": ""}, "SMKE_PROCESS_ID not set: .* all of SMKE_COORDINATOR, SMKE_NUM_PROCESSES"),
        ({"SMKE_COORDINATOR": "", "SMKE_NUM_PROCESSES": ""}, "SMKE_COORDINATOR, SMKE_NUM_PROCESSES not set"),
        ({"SMKE_NUM_PROCESSES": "four"}, "SMKE_NUM_PROCESSES is 'four': give a number"),
        ({"SMKE_PROCESS_ID": "4"}, "SMKE_PROCESS_ID is 4: of 4 processes the numbers are 0 to 3"),
        ({"SMKE_PROCESS_ID": "-1"}, "SMKE_PROCESS_ID is -1"),
        ({"SMKE_START_TIMEOUT": "soon"}, "SMKE_START_TIMEOUT is 'soon'"),
    ],
)
def test_a_place_that_is_none(joined, monkeypatch, change, message):
    environment(monkeypatch, **PLACE | change)
    with pytest.raises(UserError, match=message):
        start_processes()
    assert not joined


def test_slurm_and_tpus_are_left_to_jax(joined, monkeypatch):
    with monkeypatch.context() as slurm:
        environment(slurm, SLURM_NTASKS="2", SLURM_PROCID="1")
        start_processes()
    with monkeypatch.context() as hosts:
        environment(hosts, TPU_WORKER_HOSTNAMES="a,b")
        start_processes()
    assert joined == [({"initialization_timeout": 360},)] * 2
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    start_processes()
    assert len(joined) == 2
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    start_processes()
    assert len(joined) == 3


def test_gpus_of_a_slurm_job_that_would_stand_idle_are_refused(joined, monkeypatch):
    task = dict(SLURM_NTASKS="2", SLURM_PROCID="0", SLURM_STEP_TASKS_PER_NODE="1(x2)")
    environment(monkeypatch, **task, SLURM_GPUS_ON_NODE="8")
    with pytest.raises(UserError, match="8 GPUs and 1 tasks on a node.*srun --ntasks-per-node=8"):
        start_processes()


def test_a_job_that_cannot_be_read_is_one_line(joined, monkeypatch):
    environment(monkeypatch, SLURM_NTASKS="2", SLURM_PROCID="1")

    def refuse(**options):
        raise ValueError("coordinator_address should be defined.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match="SLURM job .* cannot be joined .coordinator_address should be defined.*alone$"):
        start_processes()


def test_a_slurm_task_that_never_comes_is_one_line(tmp_path):
    """jax itself would end the process with a stack trace of C++."""
    task = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", "from smke_jax.parallel.process import start_processes; start_processes()"],
        env={**os.environ, **task, "SLURM_LOCALID": "0", "SMKE_START_TIMEOUT": "1"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "error: the 2 tasks of this SLURM job (srun starts them) did not all come within 1 s;"
    )
    assert ended.stderr.count("\n") == 1


def test_process_0_speaks_for_all(joined, monkeypatch):
    monkeypatch.setattr(logging.getLogger("smke_jax"), "level", logging.INFO)
    environment(monkeypatch, **PLACE)
    start_processes()
    assert logging.getLogger("smke_jax").level == logging.INFO
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    start_processes()
    assert logging.getLogger("smke_jax").level == logging.WARNING


def test_alone_nothing_is_compared_and_errors_pass():
    check_same({"config.a": object()})
    for block in (failing_together, leaving_on_error):
        with pytest.raises(UserError, match="^mine$"), block():
            raise UserError("mine")


def test_ctrl_c_lets_the_step_end_and_a_second_one_does_not(interruptible, capfd):
    before = signal.getsignal(signal.SIGINT)
    with stop_requests() as asked:
        assert not asked(1)
        signal.raise_signal(signal.SIGINT)
        assert asked(1) and asked(2)
        assert "saving; Ctrl-C again stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_runs_in_the_background_ignores_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked(1)
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_is_asked_for_and_then_left_to_others():
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as asked:
        assert not asked(1)
        signal.raise_signal(signal.SIGTERM)
        assert asked(1) and asked(2)
    assert signal.getsignal(signal.SIGTERM) is before
