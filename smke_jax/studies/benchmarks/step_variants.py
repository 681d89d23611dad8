"""Forms of smke_jax's own step beside each other: XLA's flags, and attention by cuDNN.

    python -m smke_jax.studies.benchmarks.step_variants [--device=cpu|gpu] [--size=base] [--batch_size=N]

All forms start from the same state and take their steps in turns within one process, without PyTorch.
"""

import argparse
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from smke_jax.__main__ import run_program
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import in_turns, matmul_rate, reason_of, say, spread
from smke_jax.studies.benchmarks.sizes import flops_per_example, made_up_batch, step_config
from smke_jax.studies.benchmarks.train_step import (
    DEVICES,
    WARM_UP,
    Contender,
    jax_contender,
    parser_of_one_size,
    start,
    warmed_up,
)


class Variant(NamedTuple):
    """Options of XLA's compiler, and how attention is computed."""

    options: dict[str, Any]
    attention: str = "auto"


DEFAULT = "as it is"
# In the order in which they are measured, as time may run out; sources are in the notes on JAX on GPUs.
VARIANTS = {
    DEFAULT: Variant({}),
    "attention by products": Variant({}, "products"),
    "xla_gpu_enable_triton_gemm=false": Variant({"xla_gpu_enable_triton_gemm": False}),
    "xla_gpu_dot_merger_threshold_mb=0": Variant({"xla_gpu_dot_merger_threshold_mb": 0}),
    "xla_allow_excess_precision=false": Variant({"xla_allow_excess_precision": False}),
}


def main(argv: list[str]) -> int:
    """Measures the variants and writes the table; returns 1 where one failed or was left out."""
    arguments = _parser().parse_args(argv)
    device = DEVICES[arguments.device]
    start(device)
    options = {"dtype": device.dtype, "batch_size": arguments.batch_size, "gpu": arguments.device == "gpu"}
    config = step_config(arguments.size, **options)
    found, failed = variants(config, until=time.monotonic() + arguments.compile_seconds)
    if not found:
        return 1
    speeds = in_turns({name: c.run for name, c in found.items()}, rounds=arguments.rounds, seconds=arguments.seconds)
    peak = matmul_rate(device.dtype, device.matmul)
    body = report(config, found, failed, speeds, peak)
    command = " ".join(["python -m smke_jax.studies.benchmarks.step_variants", *argv])
    record.write(arguments.out, "Variants of the train step", command, body)
    say(f"{arguments.out} is written")
    return 1 if failed else 0


def variants(config, *, until: float) -> tuple[dict[str, Contender], dict[str, str]]:
    """({name: one that is compiled and warmed up}, {name: why there is none}); none is begun after `until`."""
    batch, found, failed = made_up_batch(config), {}, {}
    for name, variant in VARIANTS.items():
        if time.monotonic() > until:
            failed[name] = "not tried: no time was left to compile it"
            continue
        try:
            config.attention = variant.attention
            contender = jax_contender(config, batch, variant.options or None)
            found[name] = warmed_up(contender)._replace(initial=None)
        except Exception as error:  # what this device or release does not take: the others are measured all the same
            traceback.print_exc()
            failed[name] = reason_of(error)[:200]
        say(f"{name}: {failed.get(name) or f'compiled in {found[name].compiled_s:.1f} s'}")
    return found, failed


def report(config, found, failed, speeds, peak: float) -> str:
    """The body of the Markdown file."""
    flops, reference = sum(flops_per_example(config).values()), next(iter(found))
    rows = []
    for name, contender in found.items():
        examples = [steps * config.batch_size for steps in speeds[name]]
        ratios = [ours / theirs for ours, theirs in zip(speeds[name], speeds[reference], strict=True)]
        cells = (
            name,
            spread(examples),
            "" if name == reference else spread(ratios),
            f"{statistics.median(examples) * flops / peak:.0%}",
            f"{contender.gib:.2f}",
            f"{contender.compiled_s:.1f}",
            "{:.6g}, {:.6g}".format(*contender.losses),
        )
        rows.append(f"| {' | '.join(cells)} |")
    rows += [f"| {name} | {reason} | | | | | |" for name, reason in failed.items()]
    return "\n".join(
        (
            f"Batch {config.batch_size}, {config.networks.student.dtype}.  Medians of rounds in turns, lowest and",
            f"highest in brackets.  MFU is the share of {peak / 1e12:.3g} TFLOP/s, the rate of one product in JAX.",
            f"Losses are those before step 1 and step {1 + WARM_UP}.",
            "",
            f"| variant | examples/s | it / {reference} | MFU | GPU memory, GiB | compilation, s | losses |",
            "|---|---|---|---|---|---|---|",
            *rows,
        )
    )


def _parser() -> argparse.ArgumentParser:
    parser = parser_of_one_size("step_variants", __doc__, Path(__file__).with_suffix(".md"), device="gpu")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="times that all run in turns")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="that each runs in a round")
    parser.add_argument("--compile_seconds", type=float, default=600.0, metavar="S", help="after which none is begun")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
