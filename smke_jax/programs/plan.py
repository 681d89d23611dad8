"""`smke plan`: what training a config takes on given devices, before anything is bought, downloaded or run.

It needs the config alone.  Where the devices are not at hand, the train step is compiled for as many simulated ones.
"""

import argparse
import logging
import math
import sys
from pathlib import Path
from typing import NamedTuple

from matplotlib.ticker import EngFormatter
from ml_collections import ConfigDict

from smke_jax.__main__ import run_program
from smke_jax.errors import UserError
from smke_jax.evaluators.recalls import write_json
from smke_jax.studies.plan.devices import DEVICES, Device
from smke_jax.studies.plan.flops import flops_per_example
from smke_jax.studies.plan.predict import MOST, StepTime, largest_batch, step_time
from smke_jax.studies.plan.program import Program, compile_step, planned, take_devices
from smke_jax.programs.train import load_config, override, split_overrides

log = logging.getLogger("smke_jax")


class Figure(NamedTuple):
    """One line of the table."""

    group: str
    name: str
    value: float
    unit: str  # a key of UNITS
    origin: str  # counted (in the traced program), compiled (read from the compiled one), predicted, assumed


UNITS = {
    "": lambda x: f"{x:,.0f}",
    "%": lambda x: f"{x:.1f} %",
    "h": lambda x: f"{x:,.2f} h",
    "$": lambda x: f"{x:,.2f} $",
    **{unit: EngFormatter(unit, places=2) for unit in ("FLOP", "B", "s")},
}


def main(argv: list[str]) -> int:
    """Parses the command line, plans and prints; returns the exit status."""
    argv, overrides = split_overrides(argv)
    arguments = _parser().parse_args(argv)
    device = DEVICES[arguments.device]
    config = override(load_config(arguments.config), overrides)
    real = take_devices(device, arguments.devices)
    config.num_devices = arguments.devices
    config.total_steps, config.epochs = _steps(config, arguments.examples), 0.0
    config, notes = planned(config)
    where = f"{arguments.devices} × {arguments.device}" if real else f"{arguments.devices} simulated CPU devices"
    log.info("compiling the train step for %s", where)
    program = compile_step(config)
    times = step_time(
        device, program, arguments.devices, utilisation=arguments.utilisation, link_use=arguments.link_use
    )
    parts = {part: sum(kinds.values()) for part, kinds in flops_per_example(config).items()}
    figures = [*_counted(config, program, parts), *_compiled(program, device)]
    figures += _predicted(config, device, times, sum(parts.values()), arguments)
    if arguments.largest:
        figures += _largest(config, device, program, notes)
    notes += _notes(real, where, arguments, device, program)
    print(f"{arguments.config} on {arguments.devices} × {arguments.device}, batch_size {config.batch_size}")
    print(_table(figures))
    print("\n".join(f"- {note}" for note in notes))
    if arguments.json:
        _write(arguments, overrides, figures, notes)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "smke plan", description=__doc__, epilog="--config.a.b=value changes a field of the config", allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument("--devices", type=_positive, required=True, metavar="N")
    parser.add_argument("--device", choices=DEVICES, required=True)
    parser.add_argument(
        "--examples", type=_positive, metavar="N", help="examples seen in the whole run (default: config.total_steps)"
    )
    parser.add_argument("--price", type=float, metavar="$", help="per device and hour (default: of the table)")
    parser.add_argument(
        "--utilisation", type=_share, default=0.4, metavar="X", help="share of the peak FLOP/s (default: %(default)s)"
    )
    parser.add_argument(
        "--link_use", type=_share, default=0.8, metavar="X", help="share of the links' bytes/s (default: %(default)s)"
    )
    parser.add_argument(
        "--largest", action=argparse.BooleanOptionalAction, default=True,
        help="look for the largest batch that fits, which takes several compilations (default: yes)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def _steps(config: ConfigDict, examples: int | None) -> int:
    if examples:
        return max(1, examples // config.batch_size)
    if not config.total_steps:
        raise UserError("config.total_steps is 0: give it, or --examples=N, the examples seen in the whole run")
    return config.total_steps


def _counted(config: ConfigDict, program: Program, parts: dict[str, float]) -> list[Figure]:
    done = sum(program.flops.values()) * config.num_devices / config.batch_size
    return [
        *(Figure("parameters", name, count, "", "counted") for name, count in program.parameters.items()),
        *(Figure("FLOPs per example", part, flops, "FLOP", "counted") for part, flops in parts.items() if flops),
        Figure("FLOPs per example", "sum, which MFU counts", sum(parts.values()), "FLOP", "counted"),
        Figure("FLOPs per example", "done, with optimiser and repetitions", done, "FLOP", "counted"),
    ]


def _compiled(program: Program, device: Device) -> list[Figure]:
    memory, sent, calls = program.memory, program.traffic.sent, program.traffic.calls
    return [
        *(Figure("memory per device", name, size, "B", "compiled") for name, size in memory.items()),
        Figure("memory per device", "sum", program.total_memory, "B", "compiled"),
        Figure("memory per device", "usable", device.memory * device.usable, "B", "assumed"),
        *(
            Figure("sent per device and step", f"{kind} ({calls[kind]:,.0f} calls)", size, "B", "compiled")
            for kind, size in sent.items()
        ),
    ]


def _predicted(config: ConfigDict, device: Device, times: StepTime, flops: float, arguments) -> list[Figure]:
    step, rate = times.one_after_the_other, config.batch_size / times.one_after_the_other
    hours = config.total_steps * step / 3600
    price = device.price if arguments.price is None else arguments.price
    mfu = 100 * flops * rate / (arguments.devices * device.peak["bfloat16"])
    predicted = [
        ("step", "matrix products", times.products, "s"),
        ("step", "update of the state", times.update, "s"),
        *(("step", kind, seconds, "s") for kind, seconds in times.communication.items()),
        ("step", "one after the other", step, "s"),
        ("step", "if communication hides behind the rest", times.overlapped, "s"),
        ("run", "examples per second", rate, ""),
        ("run", "MFU, of the bfloat16 peak", mfu, "%"),
        ("run", f"{config.total_steps:,} steps", hours, "h"),
        ("run", f"at {price:.2f} $ per device and hour", hours * arguments.devices * price, "$"),
    ]
    return [Figure(*figure, "predicted") for figure in predicted]


def _largest(config: ConfigDict, device: Device, program: Program, notes: list[str]) -> list[Figure]:
    """Of the config as it is and, where it has no micro-batches, with micro-batches of half of what then fits."""
    devices, refused = config.num_devices, {}
    known = {(config.batch_size, config.micro_batch): program.total_memory}

    def memory(batch: int, micro_batch: int) -> float:
        micro_batch *= micro_batch < batch // devices  # else there is one, of everything
        if (batch, micro_batch) not in known:
            log.info("compiling for a batch of %s, micro_batch=%d", f"{batch:,}", micro_batch)
            changed = config.copy_and_resolve_references()
            changed.update(batch_size=batch, micro_batch=micro_batch)
            try:
                known[batch, micro_batch] = compile_step(changed).total_memory
            except UserError as error:  # a memory bank smaller than the batch, say
                known[batch, micro_batch], refused[batch] = math.inf, error
        return known[batch, micro_batch]

    def search(start: int, micro_batch: int) -> Figure:
        limit = device.memory * device.usable
        batch = largest_batch(lambda batch: memory(batch, micro_batch), start, devices, limit)
        if 2 * batch in refused:
            notes.append(f"more than {batch:,} examples were not tried: {refused[2 * batch]}")
        return Figure("largest batch that fits", f"micro_batch={micro_batch}", batch, "", "compiled")

    found = [search(config.batch_size, config.micro_batch)]
    largest = int(found[0].value)
    if not config.micro_batch and 2 * devices <= largest < MOST and 2 * largest not in refused:
        # Half of its first batch has to be in micro-batches too, or the line through the two says nothing.
        found.append(search(4 * largest, largest // devices // 2))
    return found


def _notes(real: bool, where: str, arguments, device: Device, program: Program) -> list[str]:
    notes = [f"compiled for {where}"]
    if not real:
        notes[0] += (
            ": temporaries are an upper estimate for accelerators, which fuse more and keep bfloat16 where a CPU "
            "computes in float32"
        )
    notes.append(
        f"predicted at {arguments.utilisation:.0%} of the peak FLOP/s (--utilisation) and {arguments.link_use:.0%} of "
        "the links' bytes/s (--link_use), communication after computation; reading data is not in it"
    )
    if arguments.price is None:
        notes.append(f"the price is one on demand ({device.price_date}): --price gives yours")
    if program.traffic.unknown_loops:
        notes.append(f"{program.traffic.unknown_loops} loops of unknown length that exchange data count once")
    if program.total_memory > device.memory * device.usable:
        notes.append("this does not fit: lower batch_size, or see micro_batch, student.remat, loss_impl and sharding")
    return notes


def _table(figures: list[Figure]) -> str:
    width = max(len(figure.name) for figure in figures)
    lines, group = [], None
    for figure in figures:
        if figure.group != group:
            group = figure.group
            lines.append(group)
        lines.append(f"  {figure.name:{width}}  {UNITS[figure.unit](figure.value):>20}  {figure.origin}")
    return "\n".join(lines)


def _write(arguments, overrides: list[str], figures: list[Figure], notes: list[str]) -> None:
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    try:
        write_json(
            arguments.json,
            {"arguments": given | {"overrides": overrides}, "figures": [f._asdict() for f in figures], "notes": notes},
        )
    except OSError as error:
        raise UserError(f"cannot write {arguments.json}: {error.strerror}; the figures stand above") from None
    print(f"wrote {arguments.json}")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
