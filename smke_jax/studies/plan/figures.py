"""The table of `smke plan`: what a run takes on given devices, each figure with its origin."""

import logging
import math
from typing import NamedTuple

from matplotlib.ticker import EngFormatter
from ml_collections import ConfigDict

from smke_jax.errors import UserError
from smke_jax.parallel.devices import DEVICES, Device
from smke_jax.studies.plan.assumed import planned
from smke_jax.studies.plan.flops import flops_per_example
from smke_jax.studies.plan.predict import MOST, StepTime, largest_batch, step_time
from smke_jax.studies.plan.program import Program, compile_step, take_devices

log = logging.getLogger("smke_jax")

UNITS = {
    "": lambda x: f"{x:,.0f}",
    "%": lambda x: f"{x:.1f} %",
    "h": lambda x: f"{x:,.2f} h",
    "$": lambda x: f"{x:,.2f} $",
    **{unit: EngFormatter(unit, places=2) for unit in ("FLOP", "B", "s")},
}


class Question(NamedTuple):
    """What is asked about a config.

    device, devices:  a key of DEVICES, and how many of them
    utilisation:      share of the peak FLOP/s that is reached
    link_use:         share of the links' bytes/s that is reached
    examples:         seen in the whole run; None: as many as config.total_steps
    images:           of the data set, for terms that keep something of each
    price:            US dollars per device and hour; None: that of DEVICES
    largest:          whether the largest batch that fits is looked for, which takes several compilations
    """

    device: str
    devices: int
    utilisation: float = 0.4
    link_use: float = 0.8
    examples: int | None = None
    images: int = 0
    price: float | None = None
    largest: bool = True

    @property
    def known(self) -> Device:
        return DEVICES[self.device]


class Figure(NamedTuple):
    """One line of the table."""

    group: str
    name: str
    value: float
    unit: str  # a key of UNITS
    origin: str  # counted (in the traced program), compiled (read from the compiled one), predicted, assumed


def answer(config: ConfigDict, question: Question) -> tuple[list[Figure], list[str]]:
    """(the table, what one has to know to read it).  Call it before any array is made: see `take_devices`."""
    real = take_devices(question.known, question.devices)
    config.num_devices = question.devices
    config.total_steps, config.epochs = _steps(config, question.examples), 0.0
    config, notes = planned(config)
    where = f"{question.devices} × {question.device}" if real else f"{question.devices} simulated CPU devices"
    log.info("compiling the train step for %s", where)
    program = compile_step(config, question.images)
    times = step_time(
        question.known, program, question.devices, utilisation=question.utilisation, link_use=question.link_use
    )
    parts = {part: sum(kinds.values()) for part, kinds in flops_per_example(config, question.images).items()}
    figures = [*_counted(config, program, parts), *_compiled(program, question.known)]
    figures += _predicted(config, question, times, sum(parts.values()))
    if question.largest:
        figures += _largest(config, question, program, notes)
    return figures, notes + _notes(real, where, question, program)


def table(figures: list[Figure]) -> str:
    """The figures for people, in their groups."""
    width = max(len(figure.name) for figure in figures)
    lines, group = [], None
    for figure in figures:
        if figure.group != group:
            group = figure.group
            lines.append(group)
        lines.append(f"  {figure.name:{width}}  {UNITS[figure.unit](figure.value):>20}  {figure.origin}")
    return "\n".join(lines)


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


def _predicted(config: ConfigDict, question: Question, times: StepTime, flops: float) -> list[Figure]:
    step, device = times.one_after_the_other, question.known
    rate, hours = config.batch_size / step, config.total_steps * step / 3600
    price = device.price if question.price is None else question.price
    mfu = 100 * flops * rate / (question.devices * device.peak["bfloat16"])
    predicted = [
        ("step", "matrix products", times.products, "s"),
        ("step", "update of the state", times.update, "s"),
        *(("step", kind, seconds, "s") for kind, seconds in times.communication.items()),
        ("step", "one after the other", step, "s"),
        ("step", "if communication hides behind the rest", times.overlapped, "s"),
        ("run", "examples per second", rate, ""),
        ("run", "MFU, of the bfloat16 peak", mfu, "%"),
        ("run", f"{config.total_steps:,} steps", hours, "h"),
        ("run", f"at {price:.2f} $ per device and hour", hours * question.devices * price, "$"),
    ]
    return [Figure(*figure, "predicted") for figure in predicted]


def _largest(config: ConfigDict, question: Question, program: Program, notes: list[str]) -> list[Figure]:
    """Of the config as it is and, where it has no micro-batches, with micro-batches of half of what then fits."""
    devices, refused = question.devices, {}
    known = {(config.batch_size, config.micro_batch): program.total_memory}

    def memory(batch: int, micro_batch: int) -> float:
        micro_batch *= micro_batch < batch // devices  # else there is one, of everything
        if (batch, micro_batch) not in known:
            log.info("compiling for a batch of %s, micro_batch=%d", f"{batch:,}", micro_batch)
            changed = config.copy_and_resolve_references()
            changed.update(batch_size=batch, micro_batch=micro_batch)
            try:
                known[batch, micro_batch] = compile_step(changed, question.images).total_memory
            except UserError as error:  # a memory bank smaller than the batch, say
                known[batch, micro_batch], refused[batch] = math.inf, error
        return known[batch, micro_batch]

    def search(start: int, micro_batch: int) -> Figure:
        limit = question.known.memory * question.known.usable
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


def _notes(real: bool, where: str, question: Question, program: Program) -> list[str]:
    notes = [f"compiled for {where}"]
    if not real:
        notes[0] += (
            ": temporaries are an upper estimate for accelerators, which fuse more and keep bfloat16 where a CPU "
            "computes in float32"
        )
    notes.append(
        f"predicted at {question.utilisation:.0%} of the peak FLOP/s (--utilisation) and {question.link_use:.0%} of "
        "the links' bytes/s (--link_use), communication after computation; reading data is not in it"
    )
    if question.price is None:
        notes.append(f"the price is one on demand ({question.known.price_date}): --price gives yours")
    if program.traffic.unknown_loops:
        notes.append(f"{program.traffic.unknown_loops} loops of unknown length that exchange data count once")
    if program.total_memory > question.known.memory * question.known.usable:
        notes.append(
            "this does not fit: lower config.batch_size, or see config.micro_batch, config.loss_impl, config.sharding "
            "and the `remat` of a network"
        )
    return notes
