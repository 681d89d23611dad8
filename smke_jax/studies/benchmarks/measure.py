"""How benchmarks measure: in turns, with the spread, and memory in a process of its own."""

import concurrent.futures
import importlib.util
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


def reason_of(error: Exception) -> str:
    """What went wrong, as a cell of a table."""
    return f"{type(error).__name__}: {error}".splitlines()[0].replace("|", "/")


def require_torch() -> None:
    """Raises UserError where there is nothing to compare with."""
    if importlib.util.find_spec("torch") is None:
        raise UserError("this benchmark compares with PyTorch: pip install 'smke_jax[torch]'")


def in_turns(runs: dict[str, Callable[[int], Any]], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """{name: steps per second in each round}; every round lets each take steps for about `seconds`, one by one.

    A run takes the number of steps and returns when they are done.  Side by side in time, neighbours that use the
    same machine slow both down, so that the ratio of a round says more than that of two medians.
    """
    steps, speeds = {}, {name: [] for name in runs}
    for name, run in runs.items():
        steps[name] = max(1, round(seconds / _seconds(run, 1)))
    for i in range(rounds):
        for name, run in runs.items():
            speeds[name].append(steps[name] / _seconds(run, steps[name]))
        say(f"  round {i + 1} of {rounds}")
    return speeds


def _seconds(run, steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> str:
    """'median (lowest–highest)', three digits."""
    return "{} ({}–{})".format(*(_three_digits(x) for x in (statistics.median(values), min(values), max(values))))


def _three_digits(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:#.3g}"


def alone(function: Callable, *arguments) -> Any:
    """`function(*arguments)` in a new process, which knows nothing of this one."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def resident_gib() -> float:
    """Memory of this process now, by Linux' accounting."""
    return _status("VmRSS")


def peak_resident_gib(run: Callable[[], Any]) -> float:
    """The most memory that this process has while `run` runs."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets earlier peaks
    run()
    return _status("VmHWM")


def _status(name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20


def matmul_rate(dtype: str, size: int, tries: int = 5) -> float:
    """Floating-point operations per second of a square matrix product in JAX, the best of some tries.

    The entries are random: a GPU multiplies constants faster.  Each try queues several products, so that the wait for
    the last of them counts little.
    """
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product, queued = jax.jit(jnp.matmul), 8

    def run(_):
        jax.block_until_ready([product(x, x) for _ in range(queued)])

    run(queued)
    return queued * 2 * size**3 / min(_seconds(run, queued) for _ in range(tries))
