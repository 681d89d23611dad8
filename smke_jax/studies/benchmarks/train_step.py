"""The whole S-SMKE step against the same step in PyTorch, in turns within one process.

    python -m smke_jax.studies.benchmarks.train_step [--sizes=micro,tiny,small,base] [--device=cpu|gpu] [--out=FILE.md]

Student forward and backward, frozen teacher, ITC, contrastive target loss with its bank, AdamW; the batch lies in
memory.  All start from the same parameters, and a form of PyTorch whose first loss differs is not timed.
"""

import argparse
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
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
    reason_of,
    require_torch,
    resident_gib,
    say,
    spread,
)
from smke_jax.studies.benchmarks.sizes import SIZES, flops_per_example, made_up_batch, step_config
from smke_jax.studies.plan.assumed import shapes_only
from smke_jax.training.build import Experiment, build_step
from smke_jax.training.frozen import load_frozen, networks_of
from smke_jax.training.optimizer import build_optimizer
from smke_jax.training.state import count_parameters
from smke_jax.training.step import init_state

JAX, EAGER, COMPILED = "smke_jax", "PyTorch eager", "PyTorch compiled"
FORMS = {"eager": EAGER, "compiled": COMPILED}
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
    gib:        GPU memory that it takes at most, 0 where that is not known yet
    losses:     before the first step and before the last one of the warm-up
    """

    run: Callable[[int], float]
    initial: Any
    compiled_s: float = 0.0
    gib: float = 0.0
    losses: tuple[float, float] = (0.0, 0.0)


def jax_contender(config, batch, options: dict[str, Any] | None = None) -> Contender:
    """smke_jax's own step, as `smke train` runs it; `options` {name of an XLA flag: value} are for its compiler."""
    train_step, state, frozen, on_device = step_from_random(config, shapes_only(config), batch)
    say("networks are initialised, the step compiles")
    begun = time.perf_counter()
    step = train_step.lower(state, frozen, on_device).compile(compiler_options=options)
    compiled_s = time.perf_counter() - begun
    initial = jax.device_get((state.params, frozen["teacher"], state.slots))
    return Contender(stepper(step, state, frozen, on_device), initial, compiled_s, program_gib(step))


def step_from_random(
    config, experiment: Experiment, batch, lengths: Sequence[int] = ()
) -> tuple[Callable, Any, Any, Any]:
    """(the jitted step of `build_step`, state, what is frozen, the batch on the devices), all from random weights."""
    recipe, mesh = experiment.recipe, experiment.mesh
    tx, _, _, train_step = build_step(config, experiment, lengths)
    state = init_state(recipe, tx, mesh, experiment.batch, seed=config.seed, shapes=experiment.shapes)
    names = networks_of(recipe, recipe.forward)
    frozen = load_frozen(recipe, experiment.shapes, {}, mesh, seed=config.seed, names=names)
    return train_step, *jax.block_until_ready((state, frozen, put_batch(batch, mesh)))


def stepper(step: Callable, state, frozen, batch) -> Callable[[int], float]:
    """(steps) -> the loss before the last of them, when they are done; it goes on where the call before ended."""

    def run(steps: int) -> float:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, frozen, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return run


def program_gib(compiled) -> float:
    """GiB of a compiled program's arguments, results and temporary memory: on a GPU all that it takes."""
    memory = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return (kept + memory.temp_size_in_bytes) / 2**30


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


def contenders(config, device: Device) -> tuple[dict[str, Contender], dict[str, str]]:
    """({name: one from the same start, warmed up}, {name: why that one cannot be timed})."""
    batch = made_up_batch(config)
    ours = jax_contender(config, batch)
    say(f"{JAX}: compiled in {ours.compiled_s:.1f} s, {ours.gib:.2f} GiB")
    found, failed = {JAX: warmed_up(ours)}, {}
    for name in device.against:
        try:
            found[name] = _pytorch_beside(found[JAX], config, batch, device, compiled=name == COMPILED)
        except Exception as error:  # PyTorch's compiler, or the memory: the others are measured all the same
            traceback.print_exc()
            failed[name] = reason_of(error)
    return found, failed


def warmed_up(contender: Contender) -> Contender:
    """The same after its first steps, with their losses; says how long a step takes by then."""
    first = contender.run(1)
    contender = contender._replace(losses=(first, contender.run(WARM_UP)))
    begun = time.perf_counter()
    contender.run(WARM_UP)
    say(f"a step takes {(time.perf_counter() - begun) / WARM_UP:.4f} s at first")
    return contender


def _pytorch_beside(ours: Contender, config, batch, device: Device, *, compiled: bool) -> Contender:
    """A form of PyTorch from the start of `ours`, warmed up.  Raises UserError where its first loss is another."""
    before = _reset_cuda_peak(device)
    theirs = pytorch_contender(config, batch, ours.initial, device=device.torch, compiled=compiled)
    begun = time.perf_counter()
    loss = theirs.run(1)
    compiled_s = time.perf_counter() - begun if compiled else 0.0
    reference = ours.losses[0]
    if not abs(loss - reference) <= TOLERANCE[config.networks.student.dtype] * abs(reference):
        raise UserError(f"its first loss is {loss}, that of {JAX} {reference}: they do not compute the same")
    last = theirs.run(WARM_UP)
    return theirs._replace(compiled_s=compiled_s, gib=_cuda_peak_gib(device) - before, losses=(loss, last))


def _reset_cuda_peak(device: Device) -> float:
    """GiB of the GPU that PyTorch holds now; it counts its peak from here on."""
    if device.torch == "cpu":
        return 0.0
    import torch

    torch.cuda.init()  # without it there is nothing to reset
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 2**30


def _cuda_peak_gib(device: Device) -> float:
    if device.torch == "cpu":
        return 0.0
    import torch

    return torch.cuda.max_memory_allocated() / 2**30


def peak_gib(config, device: Device, name: str) -> float:
    """GiB that `name` adds to the resident set of a process during its steps; call it in a process of its own."""
    start(device)
    batch = made_up_batch(config)
    before = resident_gib()
    if name == JAX:
        run = jax_contender(config, batch).run
    else:
        run = pytorch_contender(config, batch, device=device.torch, compiled=name == COMPILED).run
    run(WARM_UP)
    return peak_resident_gib(lambda: run(WARM_UP)) - before


def start(device: Device) -> None:
    """Sets JAX up for `device`, without a cache of compiled programs.  Raises UserError where there is none."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # PyTorch needs memory of the same GPU
    jax.config.update("jax_platforms", f"{device.jax},cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        make_mesh(1)
    except RuntimeError as error:
        raise UserError(f"JAX finds no such device ({str(error).splitlines()[0]}): try --device=cpu") from None


def measure(size: str, config, device: Device, *, rounds: int, seconds: float, peak: float) -> tuple[list[str], bool]:
    """(The rows of one size, whether all could be timed); `peak` is the rate of operations that MFU is a share of."""
    say(f"{size}: building, compiling, comparing the first losses")
    found, failed = contenders(config, device)
    speeds = in_turns({name: c.run for name, c in found.items()}, rounds=rounds, seconds=seconds)
    parameters = count_parameters(found[JAX].initial[0])
    flops, rows = sum(flops_per_example(config).values()), []
    for name, contender in found.items():
        examples = [steps * config.batch_size for steps in speeds[name]]
        ratios = [ours / theirs for ours, theirs in zip(speeds[JAX], speeds[name], strict=True)]
        rate = statistics.median(examples) * flops
        gib = alone(peak_gib, config, device, name) if device.torch == "cpu" else contender.gib
        cells = (
            f"{size}, {parameters / 1e6:.2f}M, batch {config.batch_size}" if name == JAX else "",
            name,
            spread(examples),
            "" if name == JAX else spread(ratios),
            f"{rate / peak:.0%}",
            f"{rate / 1e12:.3g}",
            f"{gib:.2f}",
            f"{contender.compiled_s:.1f}" if contender.compiled_s else "",
            "{:.5g}, {:.5g}".format(*contender.losses),
        )
        rows.append(f"| {' | '.join(cells)} |")
        say(rows[-1])
    for name, reason in failed.items():
        rows.append(f"| | {name} | {reason}{' |' * (COLUMNS - 2)}")
        say(rows[-1])
    return rows, not failed


TABLE = """\
| size | implementation | examples/s | smke_jax / it | MFU | TFLOP/s | peak memory, GiB | compilation, s | losses |
|---|---|---|---|---|---|---|---|---|"""
COLUMNS = 9
MEMORY = {
    "cpu": "Memory is of each alone in a process, its compiler included.",
    "gpu": "Memory is that of the compiled program in JAX, and the peak of the allocator in PyTorch.",
}


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
            f"{device.matmul}³ of random numbers in JAX just before, {peak / 1e12:.3g} TFLOP/s.",
            MEMORY["cpu" if device.torch == "cpu" else "gpu"],
            f"Losses are those before step 1 and step {1 + WARM_UP}.",
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
    """Measures the sizes asked for and writes the table after each; returns 1 where a form of PyTorch failed."""
    arguments = _parser().parse_args(argv)
    device = DEVICES[arguments.device]
    if arguments.against is not None:
        device = device._replace(against=tuple(arguments.against))
    if device.against:
        require_torch()
    start(device)
    options = {"dtype": device.dtype, "batch_size": arguments.batch_size, "gpu": arguments.device == "gpu"}
    configs = {size: step_config(size, **options) for size in arguments.sizes}
    peak = matmul_rate(device.dtype, device.matmul)
    path = arguments.out or Path(__file__).with_name(device.file)
    command = " ".join(["python -m smke_jax.studies.benchmarks.train_step", *argv])
    rows, complete = [], True
    for size, config in configs.items():
        more, timed = measure(size, config, device, rounds=arguments.rounds, seconds=arguments.seconds, peak=peak)
        rows, complete = rows + more, complete and timed
        body = report(rows, configs, device, peak, arguments.rounds)
        record.write(path, "The train step against PyTorch", command, body)
    say(f"{path} is written")
    return 0 if complete else 1


def parser_of_one_size(name: str, about: str, out: Path, *, device: str) -> argparse.ArgumentParser:
    """The flags of a program `name` that measures the step of one size; `device` and `out` are defaults.

    The first line of `about` says what it does.
    """
    parser = argparse.ArgumentParser(name, description=about.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--device", choices=list(DEVICES), default=device)
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--batch_size", type=int, default=0, metavar="N", help="default: the size's own")
    parser.add_argument("--out", type=Path, default=out, metavar="FILE")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("train_step", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--sizes", type=_sizes, default=list(SIZES), metavar="A,B", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--device", choices=list(DEVICES), default="cpu")
    parser.add_argument(
        "--against", type=_forms, metavar="A,B", help=f"of {', '.join(FORMS)}; '' is none, default: the device's"
    )
    parser.add_argument("--batch_size", type=int, default=0, metavar="N", help="default: each size's own")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="times that all run in turns")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="that each runs in a round")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: beside this program")
    return parser


def _forms(text: str) -> list[str]:
    for name in filter(None, text.split(",")):
        if name not in FORMS:
            raise UserError(f"unknown form of PyTorch {name!r}: known are {', '.join(FORMS)}")
    return [FORMS[name] for name in filter(None, text.split(","))]


def _sizes(text: str) -> list[str]:
    for size in text.split(","):
        if size not in SIZES:
            raise UserError(f"unknown size {size!r}: known are {', '.join(SIZES)}")
    return text.split(",")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
