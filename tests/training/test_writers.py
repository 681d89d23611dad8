"""metrics.jsonl holds one consistent history; the progress line says what was measured."""

import io
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smke_jax.errors import UserError
from smke_jax.reporting.metrics_log import read_metrics
from smke_jax.training.writers import MetricWriter, Progress, format_duration, peak_memory_gib


def steps(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def write_steps(workdir, *numbers):
    with MetricWriter(workdir) as writer:
        for step in numbers:
            writer.write(step, {"loss": step / 2})


def test_one_line_each_and_at_once(tmp_path):
    writer = MetricWriter(tmp_path / "run")
    writer.write(3, {"loss": jnp.float32(0.5), "rows": np.int64(7), "rate": 1e-3, "bf16": jnp.bfloat16(2)})
    line = {"step": 3, "loss": 0.5, "rows": 7, "rate": 1e-3, "bf16": 2.0}
    assert [json.loads(text) for text in writer.path.read_text().splitlines()] == [line], "before closing"
    with pytest.raises(ValueError, match=r"'loss' has shape \(2,\)"):
        writer.write(4, {"loss": jnp.ones(2)})
    writer.close()
    assert read_metrics(writer.path) == [line]


def test_nan_survives(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": float("nan")})
    assert np.isnan(read_metrics(writer.path)[0]["loss"])


def test_resuming_drops_later_lines(tmp_path):
    write_steps(tmp_path, 10, 20, 20, 30, 40)
    with MetricWriter(tmp_path) as writer:
        assert writer.truncate_after(20) == 2
        writer.write(30, {"loss": 9.0})
        assert writer.truncate_after(30) == 0
    assert steps(writer.path) == [10, 20, 20, 30]
    assert read_metrics(writer.path)[-1]["loss"] == 9.0
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("broken", ['{"step": 20, "lo', '{"step": 20, "loss": 1.0}', '{"step"', "\x00\x00", "20"])
def test_a_line_cut_short_by_a_kill(tmp_path, broken):
    write_steps(tmp_path, 10)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + broken)
    with MetricWriter(tmp_path) as writer:
        writer.write(11, {"loss": 1.0})
        whole = [10, 20, 11] if broken.endswith("}") else [10, 11]
        assert [record["step"] for record in read_metrics(path)] == whole
        writer.truncate_after(11)
        writer.write(12, {"loss": 1.0})
    assert steps(path) == [10, 11, 12]


def test_only_process_zero_writes(tmp_path, monkeypatch):
    write_steps(tmp_path, 1, 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path, tensorboard=True) as writer:
        writer.write(3, {"loss": 1.0})
        assert writer.truncate_after(0) == 0
    assert steps(tmp_path / "metrics.jsonl") == [1, 2]
    stream = io.StringIO()
    Progress(10, 1, stream=stream).log(0, 1.0)
    assert stream.getvalue() == ""


def test_unwritable_and_missing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/metrics.jsonl"):
        MetricWriter(tmp_path / "file")
    with pytest.raises(UserError, match="nothing.jsonl: no such metrics file"):
        read_metrics(tmp_path / "nothing.jsonl")


def test_tensorboard_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"pip install 'smke_jax\[tensorboard\]'"):
        MetricWriter(tmp_path, tensorboard=True)


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder):
            calls.append(folder)

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    with MetricWriter(tmp_path, tensorboard=True) as writer:
        writer.write(5, {"loss": jnp.float32(0.5)})
    assert calls == [str(tmp_path / "tensorboard"), ("loss", 0.5, 5), "closed"]


class Clock:
    """Time passes only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float):
        self.now += seconds


@pytest.fixture
def timed():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(2700, 32, 100, stream=stream, clock=clock)
    return progress, clock, lambda: stream.getvalue().splitlines()


def take_steps(progress, clock, count, wait, work):
    for _ in range(count):
        with progress.data_wait():
            clock.passes(wait)
        clock.passes(work)
        progress.step_done()


def test_rates_leave_out_compilation_and_pauses(timed):
    progress, clock, lines = timed
    take_steps(progress, clock, 1, wait=2.0, work=28.0)
    assert lines() == ["first step, with compilation: 30.0 s"]
    take_steps(progress, clock, 9, wait=0.01, work=0.09)
    with progress.pause():
        clock.passes(1000)
        with progress.data_wait():
            clock.passes(1000)
    take_steps(progress, clock, 10, wait=0.01, work=0.09)
    numbers = progress.log(120, 3.2149)
    assert numbers == pytest.approx({"examples_per_second": 320, "data_wait": 0.1, "eta_seconds": 258})
    assert lines()[-1] == "step 120/2700  loss 3.215  320 ex/s  data-wait 10.0 %  ETA 4 min 18 s"


def test_every_log_starts_a_new_stretch(timed):
    progress, clock, lines = timed
    take_steps(progress, clock, 11, wait=0.0, work=1.0)
    progress.log(111, 1.0)
    take_steps(progress, clock, 10, wait=0.0, work=0.01)
    assert progress.log(121, 1.0)["examples_per_second"] == pytest.approx(3200)
    assert "3,200 ex/s" in lines()[-1]


def test_nothing_to_measure_yet(timed):
    progress, clock, lines = timed
    take_steps(progress, clock, 1, wait=0.0, work=5.0)
    assert progress.log(101, 7.0) == {}
    assert lines()[-1] == "step 101/2700  loss 7"
    take_steps(progress, clock, 2, wait=0.0, work=0.5)
    assert progress.log(103, 7.0)["examples_per_second"] == pytest.approx(64)


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (273600, "3 d 04 h")],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


def test_peak_memory_is_of_the_fullest_device_or_of_the_process(monkeypatch):
    held = np.ones(2**26, np.uint8)  # of the process: the CPU says nothing of its own
    assert held.nbytes / 2**30 < peak_memory_gib() < 100
    devices = [
        types.SimpleNamespace(memory_stats=lambda used=used: {"peak_bytes_in_use": used}) for used in (2**30, 2**31)
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert peak_memory_gib() == 2
