"""`smke sweep`: the grid and its names, mistakes at the command line, and one whole tiny sweep that is interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from smke_jax.__main__ import main
from smke_jax.config_files import load_sweep
from smke_jax.flags.sweep import _values
from smke_jax.studies import sweep
from smke_jax.training import loop

SCALING = Path(__file__).resolve().parents[2] / "configs" / "scaling.py"

GRID = """
def get_sweep():
    return {"config.batch_size": (8, 16), "config.num_devices": [1, 2]}
"""


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "tiny_config.py"
    path.write_text(tiny.CONFIG_FILE)
    return path


@pytest.fixture
def gridded(config_file) -> Path:
    """The tiny config with a grid of its own."""
    config_file.write_text(tiny.CONFIG_FILE + GRID)
    return config_file


@pytest.fixture
def planned(tmp_path, monkeypatch, capsys):
    """What `smke sweep --dry_run` prints: {run: (state, command)}."""
    monkeypatch.setattr(sweep, "count_devices", lambda environment: int(environment.get("JAX_NUM_CPU_DEVICES", 2)))

    def plan(config, *flags) -> dict[str, tuple[str, str]]:
        assert main(["sweep", f"--config={config}", f"--out={tmp_path / 'out'}", "--dry_run", *flags]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert not (tmp_path / "out").exists()
        return {
            name: (state, command.strip())
            for (name, _, state), command in zip((line.partition(": ") for line in lines[::2]), lines[1::2])
        }

    return plan


@pytest.fixture
def fails(config_file, tmp_path, capsys):
    """The error of `smke sweep` of the tiny config."""

    def run(*flags) -> str:
        assert main(["sweep", f"--config={config_file}", f"--out={tmp_path / 'out'}", *flags]) == 2
        assert not (tmp_path / "out").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def test_every_combination_is_a_run_of_its_own(planned, config_file, tmp_path):
    runs = planned(config_file, "--axis", "config.batch_size=8,16", "--axis", "config.seed=1,2", "--config.epochs=0.0")
    assert list(runs) == ["batch_size=8,seed=1", "batch_size=8,seed=2", "batch_size=16,seed=1", "batch_size=16,seed=2"]
    assert runs["batch_size=16,seed=1"] == (
        "to be run",
        f"smke train --config={config_file} --workdir={tmp_path}/out/batch_size=16,seed=1 --config.epochs=0.0 "
        "--config.batch_size=16 --config.seed=1",
    )


def test_seeds_are_an_axis(planned, config_file):
    assert list(planned(config_file, "--seeds=3,4")) == ["seed=3", "seed=4"]


def test_a_config_says_its_own_grid_and_flags_change_it(planned, gridded):
    both = {f"batch_size={batch},num_devices={devices}" for batch in (8, 16) for devices in (1, 2)}
    assert set(planned(gridded)) == both
    assert list(planned(gridded, "--config.num_devices=1")) == ["batch_size=8", "batch_size=16"]
    assert set(planned(gridded, "--axis", "config.batch_size=4", "--seeds=1")) == {
        "batch_size=4,num_devices=1,seed=1", "batch_size=4,num_devices=2,seed=1",
    }  # fmt: skip


def test_a_variant_has_its_own_grid(planned, config_file):
    config_file.write_text(
        tiny.CONFIG_FILE + "\ntiny_config = get_config\ndef get_config(variant=''):\n    return tiny_config()\n"
        "def get_sweep(variant=''):\n    return {'config.seed': (1,) if variant else (2,)}\n"
    )
    assert list(planned(config_file)) == ["seed=2"] and list(planned(f"{config_file}:small")) == ["seed=1"]


def test_names_are_readable_distinct_and_fit_for_directories(planned, config_file):
    width = [f"config.networks.student.{part}.width=32" for part in ("image", "text")]
    (name,) = planned(config_file, "--axis", width[0], "--axis", width[1])
    assert name == "networks.student.image.width=32,networks.student.text.width=32"
    names = planned(config_file, "--axis", "config.optimizer.betas=(0.9, 0.98),(0.9,0.999)", "--axis",
                    "config.task.data=a/b,c")  # fmt: skip
    assert len(names) == 4 and not [name for name in names if "/" in name or " " in name]


def test_values_in_brackets_reach_the_run(planned, config_file):
    jobs = sweep.plan_jobs(str(config_file), {"config.optimizer.betas": ("(0.9, 0.98)", "(0.8,0.9)")}, [])
    assert [job.fields["config.optimizer.betas"] for job in jobs] == [[0.9, 0.98], [0.8, 0.9]]
    assert _values("(0.9, 0.98),(0.8,0.9),[1,2],x,x") == ("(0.9, 0.98)", "(0.8,0.9)", "[1,2]", "x")


def test_more_devices_than_there_are_skip_a_run_unless_they_are_simulated(planned, config_file):
    axis = ("--axis", "config.num_devices=1,2,8")
    states = {name: state for name, (state, _) in planned(config_file, *axis).items()}
    assert states == {
        "num_devices=1": "to be run", "num_devices=2": "to be run",
        "num_devices=8": "skipped, it asks for 8 devices and this machine shows 2",
    }  # fmt: skip
    assert {state for state, _ in planned(config_file, *axis, "--simulate_devices=8").values()} == {"to be run"}


@pytest.mark.parametrize("flags,parts", [
    ([], ["nothing to vary", "--axis config.batch_size=256,512"]),
    (["--axis", "config.bach_size=8"], ["unknown config key config.bach_size", "did you mean config.batch_size?"]),
    (["--axis", "batch_size=8"], ["unknown config key batch_size", "did you mean config.batch_size?"]),
    (["--axis", "config.batch_size=many"], ["batch_size", "many"]),
    (["--axis", "config.batch_size=8,-8"], ["config.batch_size is -8: it has to be at least 1"]),
    (["--axis", "config.batch_size"], ["axis config.batch_size has no values"]),
    (["--axis", "config.batch_size=8,16", "--config.batch_size=8"], ["both an axis and a single value"]),
    (["--seeds=1,2", "--config.seed=8"], ["config.seed is both"]),
    (["--seeds=1", "--config.bach_size=8"], ["unknown config key config.bach_size"]),
    (["--axis", "config.task.data=a/b,a b"], ["two runs", "data=a-b"]),
    (["--axis", "config.networks.teacher.start=/nowhere"], ["config.networks.teacher.start: no weights at"]),
])  # fmt: skip
def test_mistakes_are_named_before_anything_runs(fails, flags, parts):
    message = fails(*flags)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("grid,problem", [
    ("3", "has to return {'config.key': (value, …), …}"),
    ("{'config.seed': 3}", "has to return {'config.key': (value, …), …}"),
    ("{'config.task.split': 'train'}", "has to return {'config.key': (value, …), …}"),
    ("{'config.seed': ()}", "config.seed has no values"),
])  # fmt: skip
def test_a_grid_that_does_not_run(fails, config_file, grid, problem):
    config_file.write_text(tiny.CONFIG_FILE + f"\ndef get_sweep():\n    return {grid}\n")
    message = fails()
    assert problem in message and ("tiny_config.py" in message or "config.seed" in message)


@pytest.mark.parametrize("variant,runs,examples", [("", 20, 2**18), ("flickr8k", 20, 2**18), ("smoke", 4, 32)])
def test_the_scaling_study_sees_equal_examples_in_every_run(variant, runs, examples, monkeypatch):
    # The teacher of flickr8k is a run that is not here.
    monkeypatch.setattr(sweep, "check_config", lambda config, flags: None)
    location = f"{SCALING}:{variant}"
    jobs = sweep.plan_jobs(location, load_sweep(location), [])
    assert len(jobs) == runs
    for job in jobs:
        batch, devices = job.fields["config.batch_size"], job.fields["config.num_devices"]
        assert batch * job.fields["config.total_steps"] == examples
        assert batch % devices == 0 and job.fields["config.terms.target_itc.bank_size"] >= batch
    (job,) = sweep.plan_jobs(location, {"config.batch_size": (512,)}, ["--config.total_steps=7"])
    assert job.fields["config.total_steps"] == 7


# Two matrices in place of a student: the sweep runs them as it runs any network.
TWO_MATRICES = f"""
import sys, time
sys.path.insert(0, {str(Path(tiny.__file__).parent)!r})
from two_matrices import two_matrices_config as get_config
from smke_jax.training import loop
put_batch = loop.put_batch

def slow_put(batch, mesh):
    time.sleep(0.3)
    return put_batch(batch, mesh)

if put_batch.__name__ != "slow_put":  # the file may be loaded twice in a process
    loop.put_batch = slow_put
"""


@pytest.mark.slow
def test_a_sweep_survives_an_interruption_and_a_run_that_fails(
    config_file, tmp_path, interruptible, capsys, monkeypatch
):
    monkeypatch.setattr(loop, "put_batch", loop.put_batch)  # what the config file puts there goes with this test
    config_file.write_text(TWO_MATRICES)
    out, axis = tmp_path / "out", "config.num_devices=1,2,3"  # a batch of 8 does not divide over three
    command = ["sweep", f"--config={config_file}", f"--out={out}", "--axis", axis, "--config.log.every=1",
               "--config.total_steps=12", "--config.checkpoint.every=0", "--config.evaluators.retrieval.every=0",
               "--simulate_devices=3"]  # fmt: skip
    first = out / "num_devices=1"

    started = subprocess.Popen(
        [sys.executable, "-m", "smke_jax", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (first / "metrics.jsonl").exists() or len((first / "metrics.jsonl").read_text().splitlines()) < 2:
        assert time.monotonic() < deadline and started.poll() is None
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)  # to the whole group, as a terminal does at Ctrl-C
    printed, said = started.communicate(timeout=120)
    assert started.returncode == 130, said
    assert "stopped at step" in said and "stopped by SIGINT; the same command continues" in said
    assert printed == "" and not (out / "num_devices=2").exists()
    (saved,) = [int(path.name) for path in (first / "checkpoints").iterdir()]
    assert 2 <= saved < 12

    capsys.readouterr()
    status = main(command)
    printed, said = capsys.readouterr()
    assert status == 1, said
    assert f"[1/3] continuing from step {saved}" in said
    assert "2 of 3 runs are finished\n" in said
    assert "num_devices=3 failed: batch_size 8 does not divide over 3 devices: set it to 9" in said
    steps = [row["step"] for row in map(json.loads, (first / "metrics.jsonl").read_text().splitlines())
             if "loss" in row]  # fmt: skip
    assert steps == list(range(1, 13))
    table = [line for line in printed.splitlines() if line.startswith("| num_devices")]
    assert len(table) == 2 and "2 × cpu" in table[1] and "±" in table[1]
    assert {path.name for path in out.glob("compare.*")} == {"compare.html", "compare.md", "compare.json"}
    assert (out / "throughput.png").is_file() and not (out / "quality.png").exists()

    times = {name: (out / name / "metrics.jsonl").stat().st_mtime_ns for name in ("num_devices=1", "num_devices=2")}
    assert main(command) == 1 and "[2/3] num_devices=2: finished already" in capsys.readouterr().err
    assert times == {name: (out / name / "metrics.jsonl").stat().st_mtime_ns for name in times}
