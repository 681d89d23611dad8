"""One step at a large contrastive batch by micro-batches, with bank and teacher: memory and examples per second.

python -m smke_jax.studies.benchmarks.large_batch [--device=cpu|gpu] [--size=small] [--batch_size=N] [--out=FILE.md]
"""

import argparse
import sys
import time
from pathlib import Path

from smke_jax.__main__ import run_program
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import say
from smke_jax.studies.benchmarks.sizes import SIZES, flops_per_example, made_up_batch, step_config
from smke_jax.studies.benchmarks.train_step import DEVICES, jax_contender, start


def main(argv: list[str]) -> int:
    """Takes the steps and writes the table."""
    parser = argparse.ArgumentParser("large_batch", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--device", choices=list(DEVICES), default="gpu")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--batch_size", type=int, default=32_768, metavar="N", help="examples that are contrasted")
    parser.add_argument("--micro_batch", type=int, default=1_024, metavar="N", help="examples per micro-batch")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="that are timed, after one")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE")
    arguments = parser.parse_args(argv)
    device = DEVICES[arguments.device]
    start(device)
    gpu = arguments.device == "gpu"
    config = step_config(arguments.size, dtype=device.dtype, batch_size=arguments.batch_size, gpu=gpu)
    config.micro_batch = arguments.micro_batch
    contender = jax_contender(config, made_up_batch(config))
    say(f"compiled in {contender.compiled_s:.1f} s, {contender.gib:.2f} GiB")
    first = contender.run(1)
    begin = time.perf_counter()
    last = contender.run(arguments.steps)
    seconds = (time.perf_counter() - begin) / arguments.steps
    examples = arguments.batch_size / seconds
    rate = examples * sum(flops_per_example(config).values()) / 1e12
    command = " ".join(["python -m smke_jax.studies.benchmarks.large_batch", *argv])
    body = "\n".join(
        (
            f"Mean of {arguments.steps} steps in {device.dtype}.  TFLOP/s leave out what micro-batches compute again.",
            "GPU memory is that of the compiled program: arguments, results and temporary memory.",
            "",
            "| size | batch | micro-batch | bank | s/step | examples/s | TFLOP/s | GPU memory, GiB | compilation, s "
            f"| losses of steps 1 and {1 + arguments.steps} |",
            "|---|---|---|---|---|---|---|---|---|---|",
            f"| {arguments.size} | {arguments.batch_size:,} | {arguments.micro_batch:,} "
            f"| {config.terms.target_itc.bank_size:,} | {seconds:.3f} | {examples:,.0f} | {rate:.3g} "
            f"| {contender.gib:.2f} | {contender.compiled_s:.1f} | {first:.5g}, {last:.5g} |",
        )
    )
    record.write(arguments.out, "One step at a large contrastive batch", command, body)
    say(f"{arguments.out} is written")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
