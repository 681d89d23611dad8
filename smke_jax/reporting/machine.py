"""Where something was measured: the machine, the versions, the commit and the date."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "torch", "pillow")
MODULES = {"pillow": "PIL"}  # where a package's module has another name


def header() -> str:
    """Markdown lines: devices and processor, versions of the PACKAGES that this process has loaded, commit and date."""
    devices = jax.devices()
    loaded = [name for name in PACKAGES if MODULES.get(name, name) in sys.modules]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in loaded)
    return "\n".join(
        (
            f"- hardware: {len(devices)} × {devices[0].device_kind} ({devices[0].platform}); {processor()}, "
            f"{os.cpu_count()} cores, {memory_gib():.0f} GiB",
            f"- versions: Python {platform.python_version()}, {versions}",
            f"- commit: {commit()}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        )
    )


def commit() -> str:
    """Abbreviated commit of this checkout, '-dirty' where tracked files differ from it; 'unknown' outside of one."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent, check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """The processor's name as Linux gives it, elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def memory_gib() -> float:
    """Physical memory of this machine in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
