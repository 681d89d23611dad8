"""The whole S-SMKE step against the same step in PyTorch, in turns within one process.

    python -m smke_jax.studies.benchmarks.train_step [--sizes=micro,tiny,small,base] [--device=cpu|gpu] [--out=FILE.md]

Student forward and backward, frozen teacher, ITC, contrastive target loss with its bank, AdamW; the batch lies in
memory.  Both start from the same parameters, and the first loss of both has to agree before anything is timed.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.__main__ import run_program
from smke_jax.errors import UserError
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import (
    alone,
    in_turns,
    matmul_rate,
    peak_resident_gib,
    require_torch,
    resident_gib,
    say,
    spread,
)
from smke_jax.studies.benchmarks.sizes import SIZES, flops_per_example, made_up_batch, step_config
from smke_jax.studies.plan.assumed import shapes_only
from smke_jax.training.build import build_step
from smke_jax.training.frozen import load_frozen, networks_of
from smke_jax.training.optimizer import build_optimizer
from smke_jax.training.state import count_parameters
from smke_jax.training.step import init_state

JAX, EAGER, COMPILED = "smke_jax", "PyTorch eager", "PyTorch compiled"
WARM_UP = 2  # steps before anything is timed


class Device(NamedTuple):
    """Where the steps run: its names in JAX and PyTorch, PyTorch's forms there, and what goes with it."""

    jax: str
    torch: str
    against: tuple[str, ...]
    dtype: str
    matmul: int  # rows of the square matrices whose product is the yardstick of MFU
    file: str


DEVICES = {
    "cpu": Device("cpu", "cpu", (EAGER,), "float32", 2048, "train_step.md"),
    "gpu": Device("cuda", "cuda", (EAGER, COMPILED), "bfloat16", 8192, "train_step_gpu.md"),
}
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the first losses to each other, relative


class Contender(NamedTuple):
    """One implementation, ready to run.

    run:        takes that many steps, waits for them, and returns the loss before the last of them
    initial:    (params, the teacher's params, slots) that it starts from, on the host
    compiled_s: seconds that compiling took, 0 where nothing is compiled
    """

    run: Callable[[int], float]
    initial: Any
    compiled_s: float = 0.0


def jax_contender(config, batch) -> Contender:
    """smke_jax's own step, as `smke train` runs it."""
    experiment = shapes_only(config)
    recipe, mesh = experiment.recipe, experiment.mesh
    tx, _, _, train_step = build_step(config, experiment)
    state = init_state(recipe, tx, mesh, experiment.batch, seed=config.seed)
    names = networks_of(recipe, recipe.forward)
    frozen = load_frozen(recipe, experiment.shapes, {}, mesh, seed=config.seed, names=names)
    on_device = put_batch(batch, mesh)
    start = time.perf_counter()
    step = train_step.lower(state, frozen, on_device).compile()
    compiled_s = time.perf_counter() - start
    initial = jax.device_get((state.params, frozen["teacher"], state.slots))

    def run(steps: int) -> float:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, frozen, on_device)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return Contender(run, initial, compiled_s)


def pytorch_contender(config, batch, initial=None, *, device: str, compiled: bool) -> Contender:
    """The same step in PyTorch from `initial`, or from random weights."""
    import torch

    from smke_jax.studies.benchmarks.pytorch import Trainer, Twin, to_batch

    twin = Twin(config)
    if initial is not None:
        twin.load(*initial)
    options = config.optimizer.to_dict()
    _, schedule = build_optimizer(batch_size=config.batch_size, total_steps=config.total_steps, **options)
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(config.total_steps))).tolist()
    trainer, tensors = Trainer(twin.to(device), rates, compiled=compiled), to_batch(batch, device)

    def run(steps: int) -> float:
        for _ in range(steps):
            loss = trainer.step(tensors)
        if device != "cpu":
            torch.cuda.synchronize()
        return loss.item()

    return Contender(run, initial)


def contenders(config, device: Device) -> dict[str, Contender]:
    """All of them from the same start, warmed up.  Raises UserError where their first losses differ."""
    batch = made_up_batch(config)
    ours = jax_contender(config, batch)
    found, reference = {JAX: ours}, ours.run(1)
    for name in device.against:
        theirs = pytorch_contender(config, batch, ours.initial, device=device.torch, compiled=name == COMPILED)
        start = time.perf_counter()
        loss = theirs.run(1)
        found[name] = theirs._replace(compiled_s=time.perf_counter() - start if name == COMPILED else 0.0)
        if not abs(loss - reference) <= TOLERANCE[config.networks.student.dtype] * abs(reference):
            raise UserError(f"{name} starts at a loss of {loss}, {JAX} at {reference}: they do not compute the same")
    for contender in found.values():
        contender.run(WARM_UP)
    return found


def peak_gib(config, device: Device, name: str) -> float:
    """GiB that `name` takes at most during its steps; call it in a process of its own.

    On a GPU what its allocator counted; on a CPU the resident set, less what there was after the imports.
    """
    _start(device)
    batch = made_up_batch(config)
    before = resident_gib()
    if name == JAX:
        run = jax_contender(config, batch).run
    else:
        run = pytorch_contender(config, batch, device=device.torch, compiled=name == COMPILED).run
    run(WARM_UP)
    if device.torch == "cpu":
        return peak_resident_gib(lambda: run(WARM_UP)) - before
    if name == JAX:
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**30
    import torch

    return torch.cuda.max_memory_allocated() / 2**30


def _start(device: Device) -> None:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # PyTorch needs memory of the same GPU
    jax.config.update("jax_platforms", device.jax)
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        make_mesh(1)
    except RuntimeError as error:
        raise UserError(f"JAX finds no such device ({str(error).splitlines()[0]}): try --device=cpu") from None


def measure(size: str, config, device: Device, *, rounds: int, seconds: float, peak: float) -> list[str]:
    """The rows of one size; `peak` is the rate of operations that MFU is a share of."""
    say(f"{size}: building, compiling, comparing the first losses")
    found = contenders(config, device)
    speeds = in_turns({name: c.run for name, c in found.items()}, rounds=rounds, seconds=seconds)
    parameters = count_parameters(found[JAX].initial[0])
    flops, rows = sum(flops_per_example(config).values()), []
    for name, contender in found.items():
        examples = [steps * config.batch_size for steps in speeds[name]]
        ratios = [ours / theirs for ours, theirs in zip(speeds[JAX], speeds[name], strict=True)]
        cells = (
            f"{size}, {parameters / 1e6:.2f}M, batch {config.batch_size}" if name == JAX else "",
            name,
            spread(examples),
            "" if name == JAX else spread(ratios),
            f"{statistics.median(examples) * flops / peak:.0%}",
            f"{alone(peak_gib, config, device, name):.2f}",
            f"{contender.compiled_s:.1f}" if contender.compiled_s else "",
        )
        rows.append(f"| {' | '.join(cells)} |")
        say(rows[-1])
    return rows


TABLE = """\
| size | implementation | examples/s | smke_jax / it | MFU | peak memory, GiB | compilation, s |
|---|---|---|---|---|---|---|"""


def report(rows: list[str], configs: dict[str, Any], device: Device, peak: float, rounds: int) -> str:
    """The body of the Markdown file."""
    parts = {size: flops_per_example(config) for size, config in configs.items()}
    names = list(next(iter(parts.values())))
    flops = [
        f"| {size} | {' | '.join(f'{part[name] / 1e9:.4g}' for name in names)} | {sum(part.values()) / 1e9:.4g} |"
        for size, part in parts.items()
    ]
    return "\n".join(
        [
            f"Computed in {device.dtype}, parameters and losses in fp32. Medians of {rounds} rounds in turns, lowest",
            "and highest in brackets. PyTorch has SDPA and fused AdamW. MFU is the share of the rate of one product of",
            f"{device.matmul}³ in JAX just before, {peak / 1e12:.3g} TFLOP/s. Memory is of each alone in a process,",
            "its compiler included.",
            "",
            TABLE,
            *rows,
            "",
            "GFLOP of matrix products per example: trained networks count three times their forward, the teacher once.",
            "",
            f"| size | {' | '.join(names)} | sum |",
            f"|---|{'---|' * (len(names) + 1)}",
            *flops,
        ]
    )


def main(argv: list[str]) -> int:
    """Measures the sizes asked for and writes the table."""
    arguments = _parser().parse_args(argv)
    require_torch()
    device = DEVICES[arguments.device]
    _start(device)
    options = {"dtype": device.dtype, "batch_size": arguments.batch_size, "gpu": arguments.device == "gpu"}
    configs = {size: step_config(size, **options) for size in arguments.sizes}
    peak = matmul_rate(device.dtype, device.matmul)
    rows = []
    for size, config in configs.items():
        rows += measure(size, config, device, rounds=arguments.rounds, seconds=arguments.seconds, peak=peak)
    path = arguments.out or Path(__file__).with_name(device.file)
    command = " ".join(["python -m smke_jax.studies.benchmarks.train_step", *argv])
    record.write(path, "The train step against PyTorch", command, report(rows, configs, device, peak, arguments.rounds))
    say(f"{path} is written")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("train_step", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--sizes", type=_sizes, default=list(SIZES), metavar="A,B", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--device", choices=list(DEVICES), default="cpu")
    parser.add_argument("--batch_size", type=int, default=0, metavar="N", help="default: each size's own")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="times that all run in turns")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="that each runs in a round")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: beside this program")
    return parser


def _sizes(text: str) -> list[str]:
    for size in text.split(","):
        if size not in SIZES:
            raise UserError(f"unknown size {size!r}: known are {', '.join(SIZES)}")
    return text.split(",")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
