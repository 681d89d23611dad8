"""From what a program does to how long it takes: a roofline with stated shares of the peaks."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from smke_jax.parallel.devices import Device
from smke_jax.studies.plan.program import Program
from smke_jax.studies.plan.traffic import Traffic

PERMUTE = "collective-permute"
MOST = 2**20  # examples in a global batch: larger ones are not searched


class StepTime(NamedTuple):
    """Seconds of one step."""

    products: float  # matrix products, at a share of the peak that stands for all else that passes do
    update: float  # reading and writing the state once, at the bandwidth of the memory
    communication: dict[str, float]  # by kind of collective

    @property
    def one_after_the_other(self) -> float:
        return self.products + self.update + sum(self.communication.values())

    @property
    def overlapped(self) -> float:
        """With communication hidden behind computation as far as it goes, which the losses' never is entirely."""
        return max(self.products + self.update, sum(self.communication.values()))


def step_time(device: Device, program: Program, devices: int, *, utilisation: float, link_use: float) -> StepTime:
    """Of `program` on `devices` of `device`, at those shares of the peaks of matrix products and of links."""
    products = sum(flops / (device.peak[precision] * utilisation) for precision, flops in program.flops.items())
    state = program.memory["parameters"] + program.memory["optimiser state"]
    times = {
        kind: communication_time(device, program.traffic, kind, devices, link_use) for kind in program.traffic.sent
    }
    return StepTime(products, 2 * state / device.memory_bandwidth, times)


def communication_time(device: Device, traffic: Traffic, kind: str, devices: int, link_use: float) -> float:
    """Seconds that the collectives of one kind take, one after the other.

    Inside a domain at the bandwidth of its links.  Across domains the collectives of a whole ring are as fast as the
    slower of a device's links and all ports of its domain together; passing on to a neighbour is as fast as one port.
    A collective takes the latency of log2 of its devices, passing on that of one hop.
    """
    if devices == 1:
        return 0.0
    links, network, across = device.links, device.network, devices > device.links.devices
    if kind == PERMUTE:
        bandwidth = min(links.single, network.port) if across else links.single
        hops = 1
    else:
        bandwidth = min(links.together, network.ports * network.port) if across else links.together
        hops = math.ceil(math.log2(devices))
    latency = network.latency if across else links.latency
    return traffic.sent[kind] / (bandwidth * link_use) + traffic.calls[kind] * hops * latency


def largest_batch(memory: Callable[[int], float], start: int, devices: int, limit: float) -> int:
    """The largest devices · 2^k up to MOST for which memory(batch) is within `limit`; 0 where none is.

    `memory` grows with the batch and is costly.  It is asked at `start` and at half of it, then around the place where
    the straight line through the two meets the limit, until one batch fits and its double does not.
    """
    memory = functools.cache(memory)
    rounded = lambda batch: devices * 2 ** max(0, math.floor(math.log2(max(1.0, batch / devices))))  # noqa: E731
    most, large = rounded(MOST), rounded(max(start, 2 * devices))
    slope = (memory(large) - memory(large // 2)) / (large - large // 2)
    batch = min(most, rounded(large + (limit - memory(large)) / slope)) if slope > 0 else most
    while memory(batch) > limit:
        if batch <= devices:
            return 0
        batch //= 2
    while 2 * batch <= most and memory(2 * batch) <= limit:
        batch *= 2
    return batch
