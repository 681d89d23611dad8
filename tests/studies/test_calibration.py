"""How many steps fill the minutes: measured once, kept beside the runs, and not changed under a run that has begun."""

import json
import sys
from pathlib import Path

import pytest

from smke_jax.config import base
from smke_jax.errors import UserError
from smke_jax.studies import jobs
from smke_jax.studies.calibration import Calibrations
from smke_jax.studies.job import Job
from smke_jax.training.record import flatten

# Stands in for `smke train`: 64 examples at 96 per second; --do says what else it does.
STUB = """
import json, signal, sys
from pathlib import Path
flags = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[2:])
print("flags", json.dumps(flags), flush=True)
if flags["do"] == "refuse":
    print("error: config.x is 3: give 4", file=sys.stderr)
    sys.exit(2)
workdir, steps = Path(flags["workdir"]), int(flags["config.total_steps"])
(workdir / "checkpoints" / str(steps)).mkdir(parents=True)
config = {"config.total_steps": steps, "config.batch_size": 64}
(workdir / "run.json").write_text(json.dumps({"config": config, "identity": {}, "devices": ["cpu"]}))
row = {"step": steps, "loss": 1.0, "examples_per_second": 96.0, "data_wait": 0.0}
(workdir / "metrics.jsonl").write_text(json.dumps(row))
"""


@pytest.fixture(autouse=True)
def stub(tmp_path, monkeypatch):
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    monkeypatch.setattr(jobs, "SMKE", (sys.executable, str(path)))


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def job(do: str = "finish", *, seed: int = 1, **fields) -> Job:
    config = {**flatten(base()), "config.seed": seed, **{f"config.{key}": value for key, value in fields.items()}}
    return Job(f"a,seed={seed}", "c.py", (f"--do={do}", "--config.log.every=5"), config)


def begin(out: Path, name: str) -> None:
    (out / name).mkdir(parents=True)
    (out / name / "run.json").write_text("{}")


def test_the_steps_are_those_that_fill_the_time(out, capfd):
    calibrations = Calibrations(out)
    assert calibrations.total_steps("a", [job()], 2.0) is None
    record, stopped_by = calibrations.measure("a", job(), 2.0)
    assert (record["state"], stopped_by) == ("finished", 0)
    assert calibrations.total_steps("a", [job()], 2.0) == 180  # 96 / 64 steps per second
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "flags" in line]
    flags = json.loads(line.split("flags ")[1])
    assert flags["config.total_steps"] == flags["config.log.every"] == "11"  # the first compiles and is not timed
    assert flags["config.epochs"] == "0.0"
    assert [path.name for path in out.iterdir()] == ["calibration.json"]


def test_a_short_time_is_a_step_at_least(out):
    calibrations = Calibrations(out)
    calibrations.measure("a", job(), 0.001)
    assert calibrations.total_steps("a", [job()], 0.001) == 1


def test_what_was_measured_stays(out):
    Calibrations(out).measure("a", job(), 2.0)
    Calibrations(out).measure("b", job(), 4.0)
    begin(out, "a,seed=1")
    assert Calibrations(out).total_steps("a", [job()], 2.0) == 180
    assert Calibrations(out).total_steps("a", [job(seed=7, total_steps=3)], 2.0) == 180, "for every seed"
    assert Calibrations(out).total_steps("b", [job()], 4.0) == 360


def test_a_field_newer_than_the_measurement_stands_at_its_default(out):
    Calibrations(out).measure("a", job(), 2.0)
    said = json.loads((out / "calibration.json").read_text())
    del said["a"]["config"]["config.micro_batch"]
    (out / "calibration.json").write_text(json.dumps(said))
    begin(out, "a,seed=1")
    assert Calibrations(out).total_steps("a", [job()], 2.0) == 180


def test_something_else_is_measured_again_and_refused_once_a_run_has_begun(out):
    calibrations = Calibrations(out)
    calibrations.measure("a", job(), 2.0)
    assert calibrations.total_steps("a", [job()], 3.0) is None
    assert calibrations.total_steps("a", [job(batch_size=8)], 2.0) is None
    begin(out, "a,seed=2")
    both = [job(seed=1), job(seed=2)]
    with pytest.raises(UserError, match=r"a,seed=2 was begun otherwise \(--minutes: 2 there, 3 now\): give those"):
        calibrations.total_steps("a", both, 3.0)
    with pytest.raises(UserError, match=r"\(config.batch_size: 256 there, 8 now\)"):
        calibrations.total_steps("a", [job(seed=2, batch_size=8)], 2.0)
    with pytest.raises(UserError, match="its steps were not found by --minutes"):
        calibrations.total_steps("b", both, 2.0)
    assert calibrations.total_steps("a", [job(seed=1)], 3.0) is None


def test_what_fails_is_told_and_tried_again(out):
    calibrations = Calibrations(out)
    record, _ = calibrations.measure("a", job("refuse"), 2.0)
    assert (record["state"], record["error"]) == ("failed", "config.x is 3: give 4")
    assert calibrations.total_steps("a", [job()], 2.0) is None
    assert calibrations.measure("a", job(batch_size=8), 2.0)[0]["state"] == "finished"


def test_a_damaged_file_is_named(out):
    out.mkdir()
    for text in ("{", "[1]", '{"a": {"minutes": 1}}', '{"a": 3}'):
        (out / "calibration.json").write_text(text)
        with pytest.raises(UserError, match="calibration.json is damaged"):
            Calibrations(out)
