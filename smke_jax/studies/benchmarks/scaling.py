"""Weak scaling of the train step: what more devices exchange and compute, and how well that is predicted to scale.

    python -m smke_jax.studies.benchmarks.scaling [--config=FILE] [--per_device=64] [--config.a.b=value …]

The step is compiled for as many simulated CPU devices as each row says, with nothing run: bytes, collectives and
memory are those of the compiled programs.  Step times are predictions from `smke_jax/parallel/devices.py`.
"""

import argparse
import logging
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from smke_jax.__main__ import run_program
from smke_jax.config_files import load_config, override
from smke_jax.flags import split_overrides
from smke_jax.parallel.devices import DEVICES, HIGH, HIGHEST, Device
from smke_jax.studies.benchmarks import record
from smke_jax.studies.plan.assumed import planned
from smke_jax.studies.plan.predict import StepTime, step_time
from smke_jax.studies.plan.program import MOST_SIMULATED, Program, compile_step, take_devices
from smke_jax.studies.plan.traffic import SENT, Traffic

log = logging.getLogger("smke_jax")

GATHER, RING = "gather", "ring"
EXCHANGES = {  # {how losses compare rows of different devices: fields}
    GATHER: {"loss_impl": "gather", "exchange_dtype": "float32"},
    "gather, bfloat16": {"loss_impl": "gather", "exchange_dtype": "bfloat16"},
    RING: {"loss_impl": "ring", "exchange_dtype": "float32"},
}
SIZES = [1, 8, 64, 256, 1024, 2048, 4096]
HARDWARE = ("tpu-v5e", "h200")
COMPILED = """Counted, per device and step.  FLOPs of matrix products are those of the traced program, "logits" being
those that losses ask high precision for.  The bytes that a device sends (calls in brackets) and temporaries are read
from the compiled one.  Gradients by matrices of bfloat16 count as 16 bits, in which the partitioned program sums them;
simulated devices themselves would sum 32.  More devices than {most:,} are a straight line through the two sizes
before."""
PREDICTED = """Predicted, not measured: at {shares}, with the latencies of `smke_jax/parallel/devices.py`, which
are assumptions.  Efficiency is the time of one device, with its own smaller contrastive batch, over that of many: it
pays for the growth of the losses too.  "hidden" has the exchange of gradients behind the student's backward pass, taken
as half of all products."""
LEFT = """The second table of a device has what is not built, and the ms of a step that it would save, or cost where the
figure is negative.  "calls": one gather for all losses, one exchange of all totals, and one of each on the way back,
with no time for the copies that this takes.  "gradients": those in float32, of tables and biases, in bfloat16 as well.
"two stages": gathers between hosts first, then within them, and back."""
FEWEST = {"all-gather": 1, "all-to-all": 2, "reduce-scatter": 1}  # calls of the losses
Programs = dict[tuple[str, int], Program]  # {(key of EXCHANGES, devices): program}


def main(argv: list[str]) -> int:
    """Parses the command line, compiles, and writes the tables; returns the exit status."""
    argv, overrides = split_overrides(argv)
    arguments = _parser().parse_args(argv)
    config = override(load_config(arguments.config), overrides)
    compiled = [n for n in arguments.devices if n <= MOST_SIMULATED]
    take_devices(DEVICES["cpu"], max(compiled))
    programs = compile_all(planned(config)[0], compiled, arguments.per_device)
    programs |= extrapolate(programs, [n for n in arguments.devices if n > MOST_SIMULATED])
    body = report(programs, arguments.per_device, arguments.utilisation, arguments.link_use)
    given = [f"--config={arguments.config}", f"--per_device={arguments.per_device}"]
    given += [f"--devices={','.join(map(str, arguments.devices))}", *overrides]
    command = f"python -m smke_jax.studies.benchmarks.scaling {' '.join(given)}"
    print(f"{body}\nwrote {record.write(arguments.out, 'Weak scaling', command, body)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("scaling", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", default="configs/s_smke.py:random", metavar="FILE[:VARIANT]")
    parser.add_argument("--per_device", type=int, default=64, metavar="N", help="examples (default: %(default)s)")
    sizes = lambda text: sorted({1, *map(int, text.split(","))})  # noqa: E731
    parser.add_argument("--devices", type=sizes, default=SIZES, metavar="A,B", help="with 1")
    parser.add_argument("--utilisation", type=float, default=0.4, metavar="X", help="of the peak (default: 0.4)")
    parser.add_argument("--link_use", type=float, default=0.8, metavar="X", help="of the links (default: 0.8)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE")
    return parser


def compile_all(config: ConfigDict, sizes: Iterable[int], per_device: int) -> Programs:
    """The step of `config` for every size and all EXCHANGES, `per_device` examples to a device.

    A memory bank smaller than the global batch, which no run accepts, grows with it.
    """
    programs = {}
    for devices in sizes:
        for impl, fields in EXCHANGES.items():
            log.info("compiling for %d devices, losses by %s", devices, impl)
            changed = config.copy_and_resolve_references()
            changed.update(batch_size=devices * per_device, num_devices=devices, **fields)
            for term in changed.terms.values():
                if "bank_size" in term:
                    term.bank_size = max(term.bank_size, changed.batch_size)
            programs[impl, devices] = compile_step(changed)
    return programs


def extrapolate(programs: Programs, sizes: Iterable[int]) -> Programs:
    """What more devices than can be simulated would do, on a straight line through the two largest compiled sizes.

    With as many examples to each device, what is exchanged and kept is linear in the devices but for the exchange of
    gradients, which no longer grows.
    """
    compiled = sorted({devices for _, devices in programs})
    found = {}
    for devices in sizes:
        for impl in EXCHANGES:
            (few, less), (many, more) = ((n, programs[impl, n]) for n in compiled[-2:])
            beyond = (devices - few) / (many - few)
            found[impl, devices] = jax.tree.map(lambda a, b, x=beyond: a + x * (b - a), less, more)
    return found


def report(programs: Programs, per_device: int, utilisation: float, link_use: float) -> str:
    """Markdown: what was compiled, then for each HARDWARE what is predicted and what follows."""
    shares = f"{utilisation:.0%} of the peak FLOP/s and {link_use:.0%} of the bandwidth of links"
    parts = [
        COMPILED.format(most=MOST_SIMULATED),
        _compiled(programs, per_device),
        PREDICTED.format(shares=shares),
        LEFT,
    ]
    for name in HARDWARE:
        device = DEVICES[name]
        times = {
            (impl, devices): step_time(device, program, devices, utilisation=utilisation, link_use=link_use)
            for (impl, devices), program in programs.items()
        }
        parts += [
            f"## {name}",
            _speeds(device),
            _predicted(times, per_device),
            _left(device, programs, times, link_use),
            _conclusion(device, programs, times),
        ]
    return "\n\n".join(parts)


def _compiled(programs: Programs, per_device: int) -> str:
    rows = []
    for (impl, devices), program in programs.items():
        sent, calls = program.traffic.sent, program.traffic.calls
        exchanged = [
            f"{sent[kind] / 1e6:,.1f} ({calls[kind]:,.0f})" if kind in sent else "-"
            for kind in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
        ]
        exact = sum(program.flops.get(precision, 0.0) for precision in (HIGH, HIGHEST))
        rows.append(
            (devices, impl, f"{devices * per_device:,}", f"{(sum(program.flops.values()) - exact) / 1e12:.2f}",
             f"{exact / 1e12:.2f}", *exchanged, f"{program.memory['temporaries'] / 1e9:.2f}")
        )  # fmt: skip
    heads = (
        "devices", "losses by", "batch", "TFLOP", "TFLOP of logits", "all-reduce MB", "all-gather MB",
        "reduce-scatter MB", "all-to-all MB", "permute MB", "temporaries GB",
    )  # fmt: skip
    return table(heads, rows)


def _predicted(times: dict[tuple[str, int], StepTime], per_device: int) -> str:
    rows = []
    for (impl, devices), time in times.items():
        gradients = time.communication.get("all-reduce", 0.0)
        losses = sum(time.communication.values()) - gradients
        seconds = (time.products, time.update, losses, gradients, time.one_after_the_other)
        rows.append(
            (devices, impl, *(f"{1e3 * s:,.1f}" for s in seconds),
             f"{devices * per_device / time.one_after_the_other:,.0f}",
             f"{_efficiency(times, impl, devices):.0%}", f"{_efficiency(times, impl, devices, hide=True):.0%}")
        )  # fmt: skip
    heads = (
        "devices", "losses by", "products ms", "update ms", "losses' exchange ms", "gradients ms", "step ms",
        "examples/s", "efficiency", "hidden",
    )  # fmt: skip
    return table(heads, rows)


def _efficiency(times, impl: str, devices: int, *, hide: bool = False) -> float:
    return _step(times[GATHER, 1], hide) / _step(times[impl, devices], hide)


def _step(time: StepTime, hide: bool) -> float:
    hidden = min(time.communication.get("all-reduce", 0.0), time.products / 2) if hide else 0.0
    return time.one_after_the_other - hidden


def _left(device: Device, programs: Programs, times: dict[tuple[str, int], StepTime], link_use: float) -> str:
    rows = []
    for (impl, devices), program in programs.items():
        if devices == 1 or impl == RING:
            continue
        across = devices > device.links.devices
        latency = device.network.latency if across else device.links.latency
        more = sum(max(0, program.traffic.calls.get(kind, 0) - few) for kind, few in FEWEST.items())
        now = times[impl, devices]
        sums = program.traffic.sent.get("all-reduce", 0.0)
        least = SENT["all-reduce"](2 * program.parameters["trained"], devices)
        staged = sum(
            now.communication[kind] - _two_stages(device, program.traffic, kind, devices, link_use)
            for kind in ("all-gather", "reduce-scatter")
            if across and kind in now.communication
        )
        saved = (
            more * math.ceil(math.log2(devices)) * latency,
            now.communication["all-reduce"] * (1 - least / sums) if sums > least else 0.0,
            staged,
        )
        rows.append((devices, impl, *(f"{1e3 * s:,.2f}" for s in (*saved, now.one_after_the_other))))
    return table(("devices", "losses by", "calls", "gradients", "two stages", "step ms"), rows)


def _two_stages(device: Device, traffic: Traffic, kind: str, devices: int, link_use: float) -> float:
    """Seconds of a kind's collectives, first between the devices of the same place in each domain, then within it.

    Between domains a device has its share of the ports, and moves only what its own place holds.
    """
    links, network = device.links, device.network
    domains = math.ceil(devices / links.devices)
    size = traffic.sent[kind] * devices / (devices - 1)
    port = min(links.together, network.ports * network.port / links.devices)
    between = size / links.devices * (domains - 1) / domains / port
    within = size * (links.devices - 1) / links.devices / links.together
    latency = math.ceil(math.log2(domains)) * network.latency + math.ceil(math.log2(links.devices)) * links.latency
    return (between + within) / link_use + traffic.calls[kind] * latency


def _speeds(device: Device) -> str:
    peak, links, network = device.peak, device.links, device.network
    return (
        f"{peak['bfloat16'] / 1e12:,.0f} TFLOP/s in bfloat16, {peak[HIGH] / 1e12:,.0f} for logits. "
        f"{links.devices} devices with {links.together / 1e9:,.0f} GB/s each, {links.single / 1e9:,.0f} to a neighbour "
        f"and {links.latency * 1e6:,.0f} µs a hop; {network.ports} ports of {network.port / 1e9:,.0f} GB/s to others, "
        f"{network.latency * 1e6:,.0f} µs."
    )


def _conclusion(device: Device, programs: Programs, times: dict[tuple[str, int], StepTime]) -> str:
    """Where one form of the loss overtakes the other, in time and in memory, as the tables have it."""
    sizes = sorted({devices for _, devices in times if devices > 1})
    most = sizes[-1]
    slower = [n for n in sizes if times[GATHER, n].one_after_the_other > times[RING, n].one_after_the_other]
    full = [n for n in sizes if programs[GATHER, n].total_memory > device.memory * device.usable]
    seconds, memory = (
        {impl: of(impl) for impl in (GATHER, RING)}
        for of in (
            lambda impl: times[impl, most].one_after_the_other,
            lambda impl: programs[impl, most].memory["temporaries"] / 1e9,
        )
    )
    return (
        f"- gather is slower than the ring on {_list(slower)}\n- gather does not fit the memory on {_list(full)}\n"
        f"- on {most:,} the ring's step takes {seconds['ring'] / seconds['gather']:.2f} × gather's, with "
        f"{memory['ring']:.1f} GB of temporaries against {memory['gather']:.1f} GB"
    )


def _list(sizes: list[int]) -> str:
    return f"{', '.join(f'{n:,}' for n in sizes)} devices" if sizes else "none of these numbers of devices"


def table(heads: Iterable[str], rows: Iterable[Iterable]) -> str:
    """A Markdown table."""
    lines = [heads, ("---",) * len(tuple(heads)), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
