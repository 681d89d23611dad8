"""The arithmetic of predictions, and the search for the largest batch."""

import pytest

from smke_jax.parallel.devices import DEVICES, HIGH, HIGHEST, Device, Links, Network
from smke_jax.studies.plan.predict import MOST, largest_batch, step_time
from smke_jax.studies.plan.program import Program
from smke_jax.studies.plan.traffic import SENT, Traffic

DEVICE = Device(
    kind="made up", peak={"bfloat16": 1000.0, "float32": 500.0, HIGHEST: 100.0}, memory=1e6, usable=0.5,
    memory_bandwidth=50.0, links=Links(4, together=40.0, single=10.0, latency=0.1),
    network=Network(2, port=5.0, latency=1.0), price=1.0, price_date="never",
)  # fmt: skip
PROGRAM = Program(
    {"parameters": 10, "optimiser state": 15},
    {"bfloat16": 400.0, HIGHEST: 10.0},
    Traffic({"all-reduce": 80.0, "collective-permute": 20.0}, {"all-reduce": 1, "collective-permute": 3}, 0),
    {},
)


def test_time_is_work_over_speed():
    time = step_time(DEVICE, PROGRAM, 4, utilisation=0.5, link_use=0.5)
    assert time.products == pytest.approx(400 / 500 + 10 / 50)
    assert time.update == pytest.approx(2 * 25 / 50)
    assert time.communication == pytest.approx(
        {"all-reduce": 80 / 20 + 2 * 0.1, "collective-permute": 20 / 5 + 3 * 0.1}
    )
    assert time.one_after_the_other == pytest.approx(1.0 + 1.0 + 4.2 + 4.3)
    assert time.overlapped == pytest.approx(8.5), "what hides nothing"


def test_across_domains_the_network_bounds():
    within, across = (step_time(DEVICE, PROGRAM, n, utilisation=1.0, link_use=1.0).communication for n in (4, 16))
    assert within == pytest.approx({"all-reduce": 80 / 40 + 2 * 0.1, "collective-permute": 20 / 10 + 3 * 0.1})
    assert across == pytest.approx({"all-reduce": 80 / 10 + 4 * 1.0, "collective-permute": 20 / 5 + 3 * 1.0})


def test_one_device_does_not_communicate():
    assert set(step_time(DEVICE, PROGRAM, 1, utilisation=1.0, link_use=1.0).communication.values()) == {0.0}


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_every_device_can_be_predicted_with(device):
    traffic = Traffic(dict.fromkeys(SENT, 1e9), dict.fromkeys(SENT, 3), 0)
    program = PROGRAM._replace(flops=dict.fromkeys(("bfloat16", "float32", HIGH, HIGHEST), 1e12), traffic=traffic)
    for count in (1, 8, 4096):
        assert 0 < step_time(device, program, count, utilisation=0.4, link_use=0.8).one_after_the_other < 1e3
    peaks = [device.peak[x] for x in ("bfloat16", "float32", HIGH, HIGHEST)]
    assert peaks == sorted(peaks, reverse=True)
    assert device.links.single <= device.links.together < device.memory_bandwidth + 1 and 0 < device.usable <= 1


@pytest.mark.parametrize("limit", [1e3, 1e5, 1e6])
@pytest.mark.parametrize("start", [8, 256, 8192])
@pytest.mark.parametrize("memory", [lambda b: 100 + 3 * b, lambda b: 100 + 3 * b + b * b / 64])
def test_the_largest_batch_fits_and_its_double_does_not(memory, start, limit):
    asked = []
    found = largest_batch(lambda b: asked.append(b) or memory(b), start, 8, limit)
    assert found % 8 == 0 and (found // 8).bit_count() == 1
    assert memory(found) <= limit < memory(2 * found)
    assert len(asked) == len(set(asked)) <= 12


def test_the_search_knows_its_ends():
    assert largest_batch(lambda b: 1e9, 64, 8, 1e6) == 0
    assert largest_batch(lambda b: b, 64, 8, 1e12) == MOST
    # Of 12 devices no power of two is a multiple.
    assert largest_batch(lambda b: b if b % 12 == 0 else 1e99, 96, 12, 1e12) == 12 * 2**16
    assert largest_batch(lambda b: 1e9 + b, 96, 12, 1e6) == 0
    assert largest_batch(lambda b: 5e5 + 60_000 * b / 8, 64, 8, 6e5) == 8
