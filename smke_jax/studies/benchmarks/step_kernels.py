"""What the step spends its time on: every kernel, or operation of XLA, by time.

    python -m smke_jax.studies.benchmarks.step_kernels [--device=cpu|gpu] [--size=base] [--batch_size=N] [--top=40]

The steps are those of `train_step`, without PyTorch, under JAX's profiler.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import jax

from smke_jax.__main__ import run_program
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import say
from smke_jax.studies.benchmarks.sizes import flops_per_example, made_up_batch, step_config
from smke_jax.studies.benchmarks.train_step import (
    DEVICES,
    JAX,
    WARM_UP,
    jax_contender,
    parser_of_one_size,
    start,
    warmed_up,
)

KINDS = {  # of a kernel, by a piece of its name; the first that fits
    "products": ("nvjet", "gemm", "cutlass", "dot", "ynn", "matmul"),
    "attention": ("cudnn", "flash", "fmha", "mha"),
    "normalisation": ("layer_norm", "norm"),
    "padding": ("pad",),
    "transposes and copies": ("transpose", "copy", "concatenate", "slice"),
    "reductions": ("reduce",),
}
OTHER = "other elementwise passes"


class Kernel(NamedTuple):
    """One kernel in one step: milliseconds of all its calls, and how many calls."""

    name: str
    milliseconds: float
    calls: float


def main(argv: list[str]) -> int:
    """Measures, and writes the table."""
    arguments = _parser().parse_args(argv)
    device = DEVICES[arguments.device]
    start(device)
    config = step_config(
        arguments.size, dtype=device.dtype, batch_size=arguments.batch_size, gpu=arguments.device == "gpu"
    )
    contender = warmed_up(jax_contender(config, made_up_batch(config)))
    begun = time.perf_counter()
    contender.run(arguments.steps)
    seconds = (time.perf_counter() - begun) / arguments.steps
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            contender.run(arguments.steps)
        (trace,) = Path(folder).rglob("*.xplane.pb")
        found = kernels(trace, arguments.steps)
    rate = config.batch_size * sum(flops_per_example(config).values()) / seconds
    head = (
        f"{arguments.size}, batch {config.batch_size}, {device.dtype}: {seconds:.4f} s a step, {rate / 1e12:.3g} "
        f"TFLOP/s of counted products, {contender.gib:.2f} GiB."
    )
    command = " ".join(["python -m smke_jax.studies.benchmarks.step_kernels", *argv])
    record.write(arguments.out, f"Kernels of {JAX}'s step", command, f"{head}\n\n{report(found, arguments.top)}")
    say(f"{arguments.out} is written")
    return 0


def kernels(trace: Path, steps: int) -> list[Kernel]:
    """The kernels of a profiler's file in one of its `steps`, the longest first; on a CPU XLA's operations."""
    spent: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                # Only operations of XLA have an 'hlo_op'; the host's own work has none.
                if any(name == "hlo_op" for name, _ in event.stats):
                    spent[event.name] += event.duration_ns
                    calls[event.name] += 1
    found = [Kernel(name, ns / steps / 1e6, calls[name] / steps) for name, ns in spent.items()]
    return sorted(found, key=lambda kernel: -kernel.milliseconds)


def kind_of(name: str) -> str:
    """An entry of KINDS, or OTHER."""
    fits = (kind for kind, pieces in KINDS.items() if any(piece in name.lower() for piece in pieces))
    return next(fits, OTHER)


def report(found: list[Kernel], top: int) -> str:
    """The body of the Markdown file."""
    total = sum(kernel.milliseconds for kernel in found)
    kinds: dict[str, float] = defaultdict(float)
    for kernel in found:
        kinds[kind_of(kernel.name)] += kernel.milliseconds
    by_kind = sorted(kinds.items(), key=lambda item: -item[1])
    return "\n".join(
        [
            "Kinds are told by names: a fusion may hold more than its name says.",
            "",
            "| kind | ms a step | share |",
            "|---|---|---|",
            *(f"| {kind} | {ms:.2f} | {ms / total:.0%} |" for kind, ms in by_kind),
            f"| all | {total:.2f} | |",
            "",
            "| kernel | ms a step | calls a step |",
            "|---|---|---|",
            *(f"| {k.name[:90].replace('|', '/')} | {k.milliseconds:.3f} | {k.calls:.4g} |" for k in found[:top]),
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = parser_of_one_size("step_kernels", __doc__, Path(__file__).with_suffix(".md"), device="cpu")
    parser.add_argument("--steps", type=int, default=1 + WARM_UP, metavar="N", help="that are profiled")
    parser.add_argument("--top", type=int, default=40, metavar="N", help="kernels that are named")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
