"""`smke plan` from its command line: a table whose every figure says where it comes from, from the config alone."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import tiny
import tiny_pairs

from smke_jax.__main__ import main
from smke_jax.errors import UserError
from smke_jax.parallel.mesh import check_batch_size, make_mesh
from smke_jax.studies.plan.program import Program
from smke_jax.studies.plan.traffic import Traffic

ORIGINS = {"counted", "compiled", "predicted", "assumed"}


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny_config.py"
    path.write_text(tiny.CONFIG_FILE)
    return path


@pytest.fixture(autouse=True)
def invented(monkeypatch):
    """Programs that need no compilation: 1 GB for the state and 100 MB for each example of a device."""

    def compile_step(config, images):
        check_batch_size(config.batch_size, make_mesh(config.num_devices))
        if config.batch_size > config.terms.target_itc.bank_size:
            raise UserError("the bank is smaller than the batch")
        examples = min(config.batch_size // config.num_devices, config.micro_batch or math.inf)
        memory = {"parameters": 3e8, "optimiser state": 7e8, "temporaries": 1e8 * examples + 1e6 * config.batch_size}
        sent = Traffic({"all-reduce": 1e6}, {"all-reduce": 3}, 0)
        return Program(memory, {"float32": 1e12}, sent, {"trained": 10, "frozen": 20})

    parts = {"student/image forward": Counter(float32=100_000), "losses backward": Counter(highest=1_000)}
    monkeypatch.setattr("smke_jax.studies.plan.figures.compile_step", compile_step)
    monkeypatch.setattr("smke_jax.studies.plan.figures.flops_per_example", lambda config, images: parts)


def plan(config_file, *arguments) -> int:
    return main(["plan", f"--config={config_file}", "--devices=2", "--device=h200", *arguments])


def test_the_table_and_its_json(config_file, tmp_path, capsys):
    elsewhere = ("--config.task.source=prepared", "--config.task.data=nowhere")
    assert plan(config_file, "--no-largest", f"--json={tmp_path / 'plan.json'}", "--price=10", *elsewhere) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "plan.json").read_text())
    figures = {(f["group"], f["name"]): f for f in report["figures"]}
    assert {f["origin"] for f in figures.values()} == ORIGINS
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    assert len(lines) == len(figures) and all(line.split()[-1] in ORIGINS for line in lines)

    value = lambda group, name: figures[group, name]["value"]  # noqa: E731
    per_example = [f["value"] for (group, name), f in figures.items() if group == "FLOPs per example"]
    assert sum(per_example[:-2]) == per_example[-2] <= per_example[-1]
    parts = [f["value"] for (group, name), f in figures.items() if group == "memory per device"]
    assert sum(parts[:-2]) == parts[-2] and value("memory per device", "usable") == 141e9 * 0.75
    step, rate = value("step", "one after the other"), value("run", "examples per second")
    assert rate == pytest.approx(8 / step)
    hours = value("run", "6 steps")
    assert hours == pytest.approx(6 * step / 3600)
    assert value("run", "at 10.00 $ per device and hour") == pytest.approx(hours * 2 * 10)
    assert "simulated CPU devices" in out and "--utilisation" in out and "no tokenizer" in out


def largest(text: str) -> dict[str, int]:
    return {
        name: int(batch.replace(",", "")) for name, batch in re.findall(r"(micro_batch=\d+) +([\d,]+)  compiled", text)
    }


def test_the_largest_batch_is_searched_without_and_with_micro_batches(config_file, capsys):
    assert plan(config_file, "--device=a100", "--config.terms.target_itc.bank_size=1000000") == 0
    # 60 GB: 512 examples of each device need 1 + 51.2 + 1 GB, 1024 more than 100; in micro-batches of 256, 1 + 25.6
    # and 1 MB for every example of the batch.
    assert largest(capsys.readouterr().out) == {"micro_batch=0": 1024, "micro_batch=256": 32768}


def test_the_search_ends_where_the_bank_does(config_file, capsys):
    assert plan(config_file, "--config.terms.target_itc.bank_size=40") == 0
    out = capsys.readouterr().out
    assert largest(out) == {"micro_batch=0": 32}
    assert "more than 32 examples were not tried: the bank is smaller than the batch" in out


def test_what_does_not_fit_is_said(config_file, capsys):
    assert (
        plan(config_file, "--device=cpu", "--config.batch_size=1024", "--config.terms.target_itc.bank_size=5000") == 0
    )
    out = capsys.readouterr().out
    assert "this does not fit" in out and largest(out)["micro_batch=0"] == 32


def test_examples_and_speed_are_the_users(config_file, tmp_path):
    def run_hours(*arguments):
        path = tmp_path / "plan.json"
        assert plan(config_file, "--no-largest", f"--json={path}", *arguments) == 0
        figures = json.loads(path.read_text())["figures"]
        return {f["name"]: f["value"] for f in figures if f["group"] in ("run", "step")}

    slow, fast = run_hours("--examples=8000", "--utilisation=0.2"), run_hours("--utilisation=0.4")
    assert "1,000 steps" in slow and slow["matrix products"] == pytest.approx(2 * fast["matrix products"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.total_steps=0"], "config.total_steps is 0: give it, or --examples=N"),
        (["--config.batch_size=9"], "batch_size 9 does not divide over 2 devices: set it to"),
        (["--config.batch=9"], "unknown config key config.batch: did you mean config.batch_size?"),
        (["--no-largest", "--json=/dev/null/x.json"], "cannot write /dev/null/x.json: "),
    ],
)
def test_mistakes_are_one_line(config_file, arguments, said, capsys):
    assert plan(config_file, *arguments) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and said in error[0]


def test_more_devices_than_there_are_get_simulated(tmp_path):
    config_file = tmp_path / "config.py"
    config_file.write_text(tiny_pairs.CONFIG_FILE)
    command = [sys.executable, "-m", "smke_jax", "plan", f"--config={config_file}", "--devices=16", "--device=tpu-v5e"]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    command += ["--no-largest", "--config.batch_size=16"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "compiled for 16 simulated CPU devices" in done.stdout
