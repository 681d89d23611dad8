"""Bytes over the interconnect, read from the text of a compiled program.

XLA's cost analysis leaves collectives out, and what a jitted function exchanges is not known before it is partitioned.

A CPU's program differs from an accelerator's in two ways, which are undone here.  The CPU's compiler widens sums of
bfloat16 over devices to float32 and marks them as promoted: they count as the 16 bits that they were.  Sums over
devices that do not wait for each other count as one collective, as an accelerator's compiler makes one of them.
Gathers of bfloat16 carry no such mark and count as float32.
"""

import math
import re
from typing import NamedTuple

# Bytes that each of n devices sends for a result of `size` bytes per device, by the ring algorithms, which are optimal
# in bandwidth (Chan et al. 2007, "Collective communication: theory, practice, and experience").
SENT = {
    "all-gather": lambda size, n: size * (n - 1) / n,
    "reduce-scatter": lambda size, n: size * (n - 1),
    "all-reduce": lambda size, n: 2 * size * (n - 1) / n,
    "all-to-all": lambda size, n: size * (n - 1) / n,
    "collective-permute": lambda size, n: size,
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.+?) ([a-z][a-z0-9-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.-]+)")
_NAME = re.compile(r"[\w.-]+")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_PROMOTED = re.compile(r"\bto_apply=%?[\w.-]+_promoted\b")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")


class Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes


class Traffic(NamedTuple):
    """Of one device in one run of the program, by kind of collective (the keys of SENT)."""

    sent: dict[str, float]  # bytes
    calls: dict[str, float]  # collectives
    unknown_loops: int  # loops that hold collectives and do not say how often they run: counted once


def traffic(hlo: str) -> Traffic:
    """What the program whose text is `hlo` (`compiled.as_text()`) sends; loops count as often as they run."""
    computations, entry = _parse(hlo)
    devices = int(re.search(r"\bnum_partitions=(\d+)", hlo.partition("\n")[0] + " num_partitions=1").group(1))
    found: dict[str, Traffic] = {}

    def visit(name: str) -> Traffic:
        if name not in found:
            found[name] = _add(_own(computations[name], devices, visit))
        return found[name]

    return visit(entry)


def _own(instructions: dict[str, Instruction], devices: int, visit):
    """Of each instruction of a computation that exchanges anything, and of each that calls another computation."""
    waits: dict[str, int] = {}  # {instruction: how many all-reduces it waits for, one after the other}
    summed = set()  # all-reduces that count as one have one entry
    for it in instructions.values():
        used = _NAME.findall(it.rest.partition(", metadata=")[0])
        before = max((waits.get(name, 0) for name in used), default=0)
        waits[it.name] = before + (it.opcode in ("all-reduce", "all-reduce-done"))
        kind = it.opcode.removesuffix("-done")
        if kind in SENT:  # an asynchronous one is counted where it ends: there its type is that of the result
            start = it if kind == it.opcode else instructions[_NAME.search(it.rest).group()]
            n = _group_size(start.rest, devices)
            promoted = bool(_PROMOTED.search(start.rest))
            size = _bytes(it.type) / (2 if promoted else 1)
            calls = 1
            if kind == "all-reduce":
                call = (waits[it.name], n, promoted, _ARRAY.search(it.type).group(1))
                calls = int(call not in summed)
                summed.add(call)
            yield Traffic({kind: SENT[kind](size, n) if n > 1 else 0.0}, {kind: calls}, 0)
        trips = _TRIPS.search(it.rest) if it.opcode == "while" else None
        for names in _CALLED.findall(it.rest):
            for name in _NAME.findall(names):
                inner = visit(name)
                times = int(trips.group(1)) if trips else 1
                unknown = inner.unknown_loops + (it.opcode == "while" and not trips and bool(inner.calls))
                yield Traffic(_times(inner.sent, times), _times(inner.calls, times), unknown)


def _parse(hlo: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """({computation: {name: instruction}}, name of the first computation to run)."""
    computations, entry, current = {}, "", {}
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations[head.group(2)] = {}
            entry = head.group(2) if head.group(1) else entry
        elif match := _INSTRUCTION.match(line):
            current[match.group(1)] = Instruction(*match.groups())
    return computations, entry


def _group_size(attributes: str, devices: int) -> int:
    """Devices that exchange with each other: replica_groups stands as lists, as an iota or as axes of a mesh."""
    if lists := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return lists.group(1).count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(iota.group(1))
    if mesh := re.search(r"replica_groups=(?:@?\w*)\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh.group(1)))
        # An axis may be used in part: 'name':(stride)size.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part or sizes[name]) for name, part in axes)
    return devices


def _bytes(type_text: str) -> float:
    return sum(
        _bits(dtype) / 8 * math.prod(map(int, filter(None, dims.split(","))))
        for dtype, dims in _ARRAY.findall(type_text)
    )


def _bits(dtype: str) -> int:
    return 8 if dtype == "pred" else int(re.search(r"\d+", dtype).group())


def _times(counts, times):
    return {kind: times * count for kind, count in counts.items()}


def _add(parts) -> Traffic:
    sent, calls, unknown = dict.fromkeys(SENT, 0.0), dict.fromkeys(SENT, 0), 0
    for part in parts:
        for kind in part.sent:
            sent[kind] += part.sent[kind]
            calls[kind] += part.calls[kind]
        unknown += part.unknown_loops
    return Traffic({k: v for k, v in sent.items() if calls[k]}, {k: v for k, v in calls.items() if v}, unknown)
