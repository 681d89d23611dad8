"""Jobs one after the other: failures are reported, signals let the running one save, the same call continues."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from smke_jax.config import base
from smke_jax.errors import UserError
from smke_jax.studies import jobs
from smke_jax.studies.job import Job, is_trained
from smke_jax.studies.jobs import count_devices, run_jobs
from smke_jax.training.record import flatten

# Stands in for `smke train`: --do says how it behaves.
STUB = """
import json, os, signal, sys, time
from pathlib import Path
program, *arguments = sys.argv[1:]
flags = dict(argument.lstrip("-").split("=", 1) for argument in arguments)
if program == "export":
    Path(flags["out"]).mkdir()
    sys.exit(0)
workdir, do = Path(flags["workdir"]), flags["do"]

def save(step):
    (workdir / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)

if do == "refuse":
    print("error: config.x is 3: give 4", file=sys.stderr)
    sys.exit(2)
workdir.mkdir(parents=True, exist_ok=True)
(workdir / "run.json").write_text(json.dumps({"config": {"config.total_steps": 3}, "devices": ["cpu"]}))
(workdir / "starts").open("a").write(flags["config"] + os.environ.get("EXTRA", "") + "\\n")
print("step 1/3", flush=True)
if do == "crash":
    error = MemoryError("RESOURCE_EXHAUSTED: 5 GB")
    error.add_note("JAX has removed its frames")
    raise error
if do == "vanish":
    os.kill(os.getpid(), signal.SIGKILL)
if do == "wait" and not (workdir / "checkpoints" / "1").exists():
    signal.signal(signal.SIGTERM, lambda *_: (save(1), sys.exit(0)))
    (workdir / "ready").touch()
    time.sleep(60)
if do == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (workdir / "ready").touch()
    time.sleep(60)
if do != "half":
    save(3)
"""


@pytest.fixture(autouse=True)
def stub(tmp_path, monkeypatch):
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    monkeypatch.setattr(jobs, "SMKE", (sys.executable, str(path)))


def job(name: str, do: str = "finish", **fields) -> Job:
    return Job(name, "c.py", (f"--do={do}",), {**flatten(base()), **fields})


def run(out: Path, *wanted: Job, skipped=None, **environment) -> tuple[dict[str, dict], int]:
    return run_jobs(wanted, out, skipped=skipped or {}, environment=environment)


def states(records) -> dict[str, str]:
    return {name: record["state"] for name, record in records.items()}


def starts(workdir: Path) -> int:
    return len((workdir / "starts").read_text().splitlines())


def when_there(path: Path, *signals: int) -> threading.Thread:
    """Sends `signals` to this process, a moment apart, once `path` is there."""

    def send():
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.3)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_failures_are_told_and_the_rest_goes_on(tmp_path, capfd):
    wanted = [job(do, do) for do in ("refuse", "crash", "vanish", "half", "finish")]
    records, number = run(tmp_path / "out", *wanted)
    assert number == 0
    assert states(records) == {
        "refuse": "failed", "crash": "failed", "vanish": "failed", "half": "stopped", "finish": "finished",
    }  # fmt: skip
    assert records["refuse"]["error"] == "config.x is 3: give 4"
    assert records["crash"]["error"] == "MemoryError: RESOURCE_EXHAUSTED: 5 GB"
    assert "SIGKILL" in records["vanish"]["error"] and "memory" in records["vanish"]["error"]
    said = capfd.readouterr().err
    assert "[2/5] step 1/3" in said and "[5/5] finish: finished after" in said
    assert "[1/5] refuse, 5 runs left\n" in said and "[5/5] finish, 1 run left\n" in said
    assert "removed its frames" in (tmp_path / "out" / "crash.log").read_text()


def test_the_same_call_leaves_finished_ones_and_tries_failed_ones_again(tmp_path, capfd):
    out = tmp_path / "out"
    run(out, job("a"), job("b", "crash"))
    records, _ = run(out, job("a"), job("b"), job("c"))
    assert states(records) == {"a": "finished", "b": "finished", "c": "finished"}
    assert (starts(out / "a"), starts(out / "b")) == (1, 2)
    assert records["b"]["error"] == ""
    said = capfd.readouterr().err
    assert "[1/3] a: finished already" in said and "[2/3] b, 2 runs left, about 0 s" in said
    assert json.loads((out / "jobs.json").read_text())["a"]["seconds"] > 0


def test_the_time_left_is_the_mean_of_the_finished_ones(tmp_path):
    ledger = jobs.Ledger(tmp_path)
    assert ledger.time_left(2) == ", 2 runs left"
    ledger.note(job("a"), jobs.FINISHED, "", 100.0)
    ledger.note(job("a"), jobs.FINISHED)  # found finished, which took no time
    ledger.note(job("b"), jobs.FINISHED, "", 20.0)
    ledger.note(job("c"), jobs.FAILED, "x", 5.0)
    assert jobs.Ledger(tmp_path).time_left(3) == ", 3 runs left, about 3 min 00 s"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_job_save_and_starts_no_other(tmp_path, number, interruptible):
    out, before = tmp_path / "out", signal.getsignal(number)
    sender = when_there(out / "a" / "ready", number)
    records, stopped_by = run(out, job("a", "wait"), job("b"))
    sender.join()
    assert stopped_by == number and signal.getsignal(number) == before
    assert states(records) == {"a": "stopped"} and (out / "a" / "checkpoints" / "1").is_dir()
    assert not (out / "b").exists()

    records, stopped_by = run(out, job("a", "wait"), job("b"))
    assert stopped_by == 0 and states(records) == {"a": "finished", "b": "finished"}
    assert starts(out / "a") == 2


def test_a_second_signal_ends_a_job_that_does_not_listen(tmp_path):
    started = time.monotonic()
    sender = when_there(tmp_path / "a" / "ready", signal.SIGTERM, signal.SIGTERM)
    records, stopped_by = run(tmp_path, job("a", "deaf"), job("b"))
    sender.join()
    assert stopped_by == signal.SIGTERM and states(records) == {"a": "stopped"}
    assert time.monotonic() - started < 30


def test_an_ignored_signal_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        sender = when_there(tmp_path / "a" / "ready", signal.SIGHUP, signal.SIGTERM)
        _, stopped_by = run(tmp_path, job("a", "wait"))
        sender.join()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stopped_by == signal.SIGTERM


def test_skipped_jobs_say_why_unless_they_are_finished(tmp_path, capfd):
    run(tmp_path, job("a"))
    records, _ = run(tmp_path, job("a"), job("b"), skipped={"a": "too large", "b": "too large"})
    assert states(records) == {"a": "finished", "b": "skipped"} and records["b"]["error"] == "too large"
    assert "[2/2] b: skipped, too large" in capfd.readouterr().err and not (tmp_path / "b").exists()


def test_another_config_of_the_same_name_is_refused_before_anything_runs(tmp_path):
    run(tmp_path, job("b"), job("c", "refuse"))
    other = {"config.optimizer.learning_rate": 1.0}
    with pytest.raises(UserError, match=r"b holds a run of another config \(config.optimizer.learning_rate: 0.0001 th"):
        run(tmp_path, job("a"), job("b", **other))
    assert not (tmp_path / "a").exists()
    # What never became a run may change.
    assert states(run(tmp_path, job("c", **other))[0]) == {"c": "finished"}


def test_a_field_newer_than_the_jobs_stands_at_its_default(tmp_path):
    run(tmp_path, job("a"))
    records = json.loads((tmp_path / "jobs.json").read_text())
    del records["a"]["config"]["config.optimizer.clip_norm"]
    (tmp_path / "jobs.json").write_text(json.dumps(records))
    assert states(run(tmp_path, job("a"))[0]) == {"a": "finished"}
    with pytest.raises(UserError, match="optimizer.clip_norm: 0.0 there, 8.0 now"):
        run(tmp_path, job("a", **{"config.optimizer.clip_norm": 8.0}))


def test_a_damaged_record_of_the_jobs_is_named(tmp_path):
    for text in ("{", "[1]", "3"):
        (tmp_path / "jobs.json").write_text(text)
        with pytest.raises(UserError, match="jobs.json is damaged"):
            run(tmp_path, job("a"))


def test_a_run_for_others_to_start_from_is_exported_once(tmp_path):
    exporting = job("a")._replace(exports=True)
    assert [arguments[0] for arguments in exporting.programs(tmp_path)] == ["train", "export"]
    run(tmp_path, job("a"))
    assert not exporting.is_finished(tmp_path)
    assert [arguments[0] for arguments in exporting.programs(tmp_path)] == ["export"]
    run(tmp_path, exporting)
    assert (tmp_path / "a" / "export").is_dir() and starts(tmp_path / "a") == 1
    assert exporting.is_finished(tmp_path) and not exporting.programs(tmp_path)


def test_half_a_run_is_not_exported(tmp_path):
    records, _ = run(tmp_path, job("a", "half")._replace(exports=True))
    assert records["a"]["state"] == "stopped" and not (tmp_path / "a" / "export").exists()


def test_of_several_stages_the_last_says_that_it_is_finished(tmp_path):
    staged = job("a")._replace(stages=("codes", "student"))
    assert staged.directory(tmp_path) == tmp_path / "a" / "student" and not staged.is_begun(tmp_path)
    run(tmp_path / "a", job("codes"))
    assert staged.is_begun(tmp_path) and not staged.is_finished(tmp_path)
    run(tmp_path / "a", job("student"))
    assert staged.is_finished(tmp_path)


def test_a_damaged_run_is_not_finished(tmp_path):
    run(tmp_path, job("a"))
    assert is_trained(tmp_path / "a") and job("a").is_finished(tmp_path)
    for text in ("{", "[]", "{}"):
        (tmp_path / "a" / "run.json").write_text(text)
        assert not is_trained(tmp_path / "a")


def test_the_environment_reaches_the_jobs(tmp_path):
    run(tmp_path, job("a"), EXTRA="-extra")
    assert (tmp_path / "a" / "starts").read_text() == "c.py-extra\n"


def test_devices_are_counted_in_the_environment_of_the_jobs(monkeypatch):
    assert count_devices({"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3"}) == 3
    with pytest.raises(UserError, match="JAX finds no devices: .*nonesuch"):
        count_devices({"JAX_PLATFORMS": "nonesuch"})
