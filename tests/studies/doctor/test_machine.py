"""What the doctor says of a machine, told by files and variables that are made up."""

import os
from types import SimpleNamespace

import jax
import pytest
from packaging.requirements import Requirement

import smke_jax
from smke_jax.studies.doctor import machine, versions
from smke_jax.studies.doctor.machine import Gpu


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_smallest_limit_of_the_groups_counts(tmp_path):
    """A group inside another: 8 GiB, of which 7.5 are used and 1.5 of those are files that can be dropped."""
    gib = 2**30
    root = write(tmp_path, {
        "proc/self/cgroup": "0::/outer/inner\n",
        "proc/meminfo": "MemTotal: 99 kB\nMemAvailable: 52428800 kB\n",
        "sys/fs/cgroup/outer/memory.max": "max\n",
        "sys/fs/cgroup/outer/memory.current": f"{9 * gib}\n",
        "sys/fs/cgroup/outer/inner/memory.max": f"{8 * gib}\n",
        "sys/fs/cgroup/outer/inner/memory.current": f"{int(7.5 * gib)}\n",
        "sys/fs/cgroup/outer/inner/memory.stat": f"anon 1\ninactive_file {int(1.5 * gib)}\n",
        "sys/fs/cgroup/outer/cpu.max": "100000 100000\n",
    })  # fmt: skip
    assert machine.container_memory(root) == (8.0, 6.0)
    assert machine.available_gib(root) == 50.0
    assert machine.cores(root) == 1
    assert machine.container_memory(tmp_path / "nowhere") == (None, 0.0)


def test_a_full_container_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory_gib", lambda: 64.0)
    root = write(tmp_path, {
        "proc/meminfo": f"MemAvailable: {32 * 2**20} kB\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * 2**30}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * 2**30}\n",
    })  # fmt: skip
    finding = machine.check_memory(root)
    assert not finding.ok and "only 1.0 GiB of memory are free: raise the container's limit" in finding.said
    (root / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")  # no limit
    assert machine.check_memory(root) == ("memory", True, "host 32.0 of 64.0 GiB free")


def test_a_gpu_that_jax_does_not_use_and_one_that_others_use(monkeypatch):
    gpus = [Gpu(0, "GPU-a1", "H100", 100.0, 81559.0), Gpu(1, "GPU-b2", "H100", 40960.0, 81920.0)]
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    finding = machine.check_devices(gpus)
    assert not finding.ok and "pip install 'jax[cuda13]'" in finding.said
    assert "other processes hold 40.0 of 80.0 GiB of GPU 1: end them" in finding.said
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "unset JAX_PLATFORMS" in machine.check_devices(gpus).said
    assert machine.check_devices([]).ok


@pytest.mark.parametrize("visible, is_busy", [("0", False), ("GPU-a", False), ("1", True), ("0, GPU-b2", True)])
def test_a_gpu_that_is_left_out_is_not_looked_at(monkeypatch, visible, is_busy):
    gpus = [Gpu(0, "GPU-a1", "H100", 100.0, 81559.0), Gpu(1, "GPU-b2", "H100", 40960.0, 81920.0)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ("of GPU 1" in machine.check_devices(gpus).said) == is_busy


def test_gpus_that_are_all_hidden_are_named(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finding = machine.check_devices([Gpu(0, "GPU-a1", "H100", 100.0, 81559.0)])
    assert not finding.ok and "CUDA_VISIBLE_DEVICES hides it" in finding.said


def test_what_the_driver_says_is_read(monkeypatch):
    said = "0, GPU-5f, NVIDIA H200, 12, 143771\n1, GPU-6a, NVIDIA H200, 0, 143771\n"
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **fields: SimpleNamespace(stdout=said))
    assert machine.gpus_of_driver() == [
        Gpu(0, "GPU-5f", "NVIDIA H200", 12.0, 143771.0), Gpu(1, "GPU-6a", "NVIDIA H200", 0.0, 143771.0)
    ]  # fmt: skip


def test_settings_that_slow_a_run_down():
    assert machine.check_settings({"PATH": "x"}).said == "matrix products in default precision"
    with jax.enable_x64(True):
        finding = machine.check_settings({"XLA_PYTHON_CLIENT_ALLOCATOR": "platform", "XLA_FLAGS": "--x"})
    assert not finding.ok and "unset JAX_ENABLE_X64; " in finding.said and "ALLOCATOR; " in finding.said
    assert "XLA_FLAGS=--x" in finding.said


def test_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "jax", SimpleNamespace(config=SimpleNamespace(jax_compilation_cache_dir="")))
    assert machine.check_cache().ok and "off" in machine.check_cache().said
    machine.jax.config.jax_compilation_cache_dir = str(tmp_path / "cache")
    assert machine.check_cache() == ("cache", True, f"{tmp_path / 'cache'}: 0 files, 0 MB")
    machine.jax.config.jax_compilation_cache_dir = str(write(tmp_path, {"file": ""}) / "file" / "cache")
    finding = machine.check_cache()
    assert not finding.ok and "set JAX_COMPILATION_CACHE_DIR" in finding.said


@pytest.mark.parametrize("free, speed, wrong", [(50, 500.0, ""), (1, 500.0, "1.0 GiB are free"), (50, 9.0, "is slow")])
def test_the_disk(tmp_path, monkeypatch, free, speed, wrong):
    """The folder need not be there; how full and how fast the disk is, is made up."""
    monkeypatch.setattr(machine.os, "statvfs", lambda path: SimpleNamespace(f_bavail=free, f_frsize=2**30))
    monkeypatch.setattr(machine, "disk_speed", lambda folder: (speed, 1000.0))
    finding = machine.check_disk(tmp_path / "not" / "yet")
    assert finding.ok == (not wrong) and wrong in finding.said and str(tmp_path) in finding.said


def test_the_speed_of_a_disk_is_that_of_what_was_written(tmp_path, monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: 0.1 * next(ticks))
    write_speed, read_speed = machine.disk_speed(tmp_path, megabytes=8)
    # Two blocks of 4 MB each way.  The clock is asked before them, at each, and at the end, 0.1 s later every time.
    assert write_speed == pytest.approx(8 / 0.3) and read_speed == pytest.approx(8 / 0.3)
    assert not list(tmp_path.iterdir())


def test_versions_outside_their_bounds():
    requirements = [Requirement(x) for x in ("jax>=0.10.2,<0.11", "flax>=1", "gone>=2", "smke_jax[onnx]")]
    found = {"jax": "0.10.3", "flax": "0.12.8"}.get
    flax, gone = versions.outside(requirements, found, optional=False)
    assert flax.startswith("flax 0.12.8 is outside >=1") and flax.endswith("pip install 'flax>=1'")
    assert gone == "gone is not installed: pip install 'gone>=2'"
    assert versions.outside(requirements[2:], found, optional=True) == []


def test_the_bounds_are_those_of_the_package(monkeypatch, tmp_path):
    """In a clone those of setup.cfg; without it those of the installed package, which has been made of it."""
    python, needed, extras = versions.stated()
    assert python == ">=3.11" and "jax" in {x.name for x in needed} and "torch" in {x.name for x in extras}
    assert versions.check_versions().ok, versions.check_versions().said
    monkeypatch.setattr(smke_jax, "__file__", os.fspath(tmp_path / "smke_jax" / "__init__.py"))
    again, installed, others = versions.stated()
    assert again == python and "flax" in {x.name for x in installed} and "torch" in {x.name for x in others}
