"""Devices, memory, settings, the compilation cache and the disk of this machine."""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from smke_jax.reporting.machine import memory_gib, processor
from smke_jax.studies.doctor.findings import Finding, judged

GIB = 2**30
LEAST_MEMORY = 2.0  # GiB free of the host: importing, compiling and a small run need about as much
LEAST_DISK = 2.0  # GiB: two checkpoints of the thesis' student
SLOW_DISK = 30.0  # MB/s of writing: a checkpoint of 1.4 GB would take most of a minute
PROBE = 64  # MB that are written and read
OTHERS = 0.1  # share of a GPU's memory that others may hold
NO_DEVICE = "JAX starts none"
UNLIMITED = 2**60  # bytes: what a control group of the first version says instead of 'max'


class Gpu(NamedTuple):
    """What the driver says of a GPU: its number and identifier, its name, and memory in MiB."""

    number: int
    uuid: str
    name: str
    used: float
    total: float


def gpus_of_driver() -> list[Gpu]:
    """The GPUs that NVIDIA's driver knows; ask before JAX takes their memory.  Empty where there is no driver."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
        fields = [[x.strip() for x in line.split(",")] for line in lines]
        return [Gpu(int(number), uuid, name, float(used), float(total)) for number, uuid, name, used, total in fields]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def check_devices(gpus: list[Gpu]) -> Finding:
    """What JAX computes on.  `gpus` as the driver had them before JAX was asked."""
    try:
        devices = jax.devices()
    except RuntimeError as error:
        remedy = "install the build of JAX for this device (pip install 'jax[cuda13]' or 'jax[tpu]'), or JAX_PLATFORMS="
        return Finding("devices", False, f"{NO_DEVICE} ({str(error).splitlines()[0]}): {remedy}")
    kinds = ", ".join(sorted({d.device_kind for d in devices}))
    wrong, visible = [], _visible(gpus, os.environ)
    if gpus and devices[0].platform == "cpu":
        remedy = _to_the_gpu(os.environ, is_visible=bool(visible))
        wrong.append(f"{gpus[0].name} is here and JAX computes on the CPU: {remedy}")
    for gpu in visible:
        if gpu.used > OTHERS * gpu.total:
            wrong.append(
                f"other processes hold {gpu.used / 1024:.1f} of {gpu.total / 1024:.1f} GiB of GPU {gpu.number}: "
                "end them, or set CUDA_VISIBLE_DEVICES to another"
            )
    simulated = " (simulated: they share the cores)" if devices[0].platform == "cpu" and len(devices) > 1 else ""
    said = f"{len(devices)} × {kinds}{simulated}; {processor()}, {cores()} cores"
    return judged("devices", said, wrong)


def _visible(gpus: list[Gpu], environment: Mapping[str, str]) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves to JAX, named there by number or by the start of the identifier."""
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return gpus
    names = [name.strip() for name in environment["CUDA_VISIBLE_DEVICES"].split(",")]
    return [gpu for gpu in gpus if any(x and (x == str(gpu.number) or gpu.uuid.startswith(x)) for x in names)]


def _to_the_gpu(environment: Mapping[str, str], *, is_visible: bool) -> str:
    if "cpu" in environment.get("JAX_PLATFORMS", ""):
        return "unset JAX_PLATFORMS"
    if not is_visible:
        return "CUDA_VISIBLE_DEVICES hides it, unset that"
    return "pip install 'jax[cuda13]'"


def cores(root: Path = Path("/")) -> int:
    """Processor cores that this process may use, its control group's share included."""
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _control_groups(root):
        quota, _, period = _first_line(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            free = min(free, max(1, round(int(quota) / int(period))))
    return free


def check_memory(root: Path = Path("/")) -> Finding:
    """Free memory of the host and of the container, and what JAX may take of the devices."""
    total, available = memory_gib(), available_gib(root)
    limit, used = container_memory(root)
    parts, wrong = [f"host {available:.1f} of {total:.1f} GiB free"], []
    free = available
    if limit is not None and limit < total:
        parts.append(f"container {used:.1f} of {limit:.1f} GiB used")
        free = min(free, limit - used)
    if free < LEAST_MEMORY:
        where = "raise the container's limit" if free < available else "end other programs"
        wrong.append(f"only {free:.1f} GiB of memory are free: {where}, or use another machine")
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [x["bytes_limit"] / GIB for x in stats if "bytes_limit" in x]
    if limits:
        parts.append(f"JAX may take {min(limits):.1f} GiB of each device")
    return judged("memory", ", ".join(parts), wrong)


def available_gib(root: Path = Path("/")) -> float:
    """Memory of the host that is free or can be freed, as the kernel estimates it; all of it where it does not say."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return memory_gib()
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return memory_gib() if found is None else int(found) / 2**20


def container_memory(root: Path = Path("/")) -> tuple[float | None, float]:
    """(limit, used) in GiB of the control group of this process with the least left; (None, 0) without a limit.

    What the group holds of files that can be dropped at once does not count as used.
    """
    found = []
    for folder in _control_groups(root):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            texts = _first_line(folder / limit), _first_line(folder / used)
            if all(text.isdecimal() for text in texts) and int(texts[0]) < UNLIMITED:
                held = max(0, int(texts[1]) - _droppable(folder))
                found.append((int(texts[0]) / GIB, held / GIB))
    return min(found, key=lambda x: x[0] - x[1], default=(None, 0.0))


def _droppable(folder: Path) -> int:
    try:
        fields = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
    except OSError:
        return 0
    return next((int(value) for name, value in fields if name in ("inactive_file", "total_inactive_file")), 0)


def _control_groups(root: Path) -> list[Path]:
    """The folders of the control groups of this process and of those above it."""
    folders = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/memory"]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            top = root / "sys/fs/cgroup" / kinds
            inner = top / path.lstrip("/")
            folders += [x for x in (inner, *inner.parents) if x.is_relative_to(top)]
    return list(dict.fromkeys(folders))


def _first_line(path: Path) -> str:
    try:
        return path.read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return ""


def check_settings(environment: Mapping[str, str]) -> Finding:
    """Settings of JAX and XLA that change what a run computes, how fast, or in how much memory."""
    config, wrong = jax.config, []
    if config.jax_enable_x64:
        wrong.append("JAX computes in 64 bits, at half the speed and less: unset JAX_ENABLE_X64")
    if config.jax_disable_jit:
        wrong.append("JAX compiles nothing: unset JAX_DISABLE_JIT")
    if config.jax_debug_nans:
        wrong.append("JAX looks for NaN after every operation, which is slow: unset JAX_DEBUG_NANS")
    if environment.get("XLA_PYTHON_CLIENT_ALLOCATOR") == "platform":
        wrong.append("every array is allocated by the driver, which is slow: unset XLA_PYTHON_CLIENT_ALLOCATOR")
    names = ("JAX_", "XLA_", "SMKE_", "TF_GPU_ALLOCATOR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NCCL_")
    own = [f"{k}={x}" for k, x in sorted(environment.items()) if k.startswith(names)]
    precision = config.jax_default_matmul_precision or "default"
    return judged("settings", ", ".join([f"matrix products in {precision} precision", *own]), wrong)


def check_cache() -> Finding:
    """JAX's cache of compiled programs, without which every start compiles anew."""
    folder = jax.config.jax_compilation_cache_dir
    if not folder:
        return Finding("cache", True, "off: every start compiles anew (unset JAX_COMPILATION_CACHE_DIR to turn it on)")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        sizes = [x.stat().st_size for x in os.scandir(folder) if x.is_file()]
    except OSError as error:
        remedy = "set JAX_COMPILATION_CACHE_DIR to a folder that can be"
        return Finding("cache", False, f"{folder} cannot be written ({error.strerror}): {remedy}")
    return Finding("cache", True, f"{folder}: {len(sizes)} files, {sum(sizes) / 1e6:,.0f} MB")


def check_disk(folder: Path) -> Finding:
    """Free space and speed of the disk of `folder`, where runs are written.  `folder` need not be there yet."""
    place = next(x for x in (folder.resolve(), *folder.resolve().parents) if x.is_dir())
    try:
        system = os.statvfs(place)
        free = system.f_bavail * system.f_frsize / GIB
        wrong = []
        if free < LEAST_DISK:
            wrong.append(f"only {free:.1f} GiB are free at {place}: free some, or give a --workdir on another disk")
        if free * GIB < 2 * PROBE * 1e6:
            return judged("disk", f"{place}: too little room to measure its speed", wrong)
        write, read = disk_speed(place)
    except OSError as error:
        remedy = "give a --workdir that can be"
        return Finding("disk", False, f"{place} cannot be written ({error.strerror}): {remedy}")
    if write < SLOW_DISK:
        wrong.append(f"writing at {write:.0f} MB/s is slow, saving will hold runs up: give a --workdir on a local disk")
    return judged("disk", f"{place}: {free:,.0f} GiB free, writes {write:,.0f} MB/s, reads {read:,.0f} MB/s", wrong)


def disk_speed(folder: Path, megabytes: int = PROBE, seconds: float = 1.0) -> tuple[float, float]:
    """MB/s of (writing to the disk, reading back), of at most so many megabytes and about so many seconds."""
    block, written = os.urandom(4_000_000), 0
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        start = time.perf_counter()
        while written < megabytes * 1e6 and time.perf_counter() - start < seconds:
            written += file.write(block)
            os.fsync(file.fileno())
        write = written / 1e6 / (time.perf_counter() - start)
        if hasattr(os, "posix_fadvise"):  # what memory holds of the file would be read from there
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(4_000_000) and time.perf_counter() - start < seconds:
            pass
        return write, file.tell() / 1e6 / (time.perf_counter() - start)
