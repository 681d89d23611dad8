"""Processes that meet, played by threads: all there, one missing, one twice, a stranger at the door."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from workers import free_port

from smke_jax.errors import UserError
from smke_jax.parallel.rendezvous import meet


def attempt(coordinator: str, count: int, number: int, timeout: float, delay: float = 0.0) -> str | None:
    """What `meet` refused, None where all met."""
    time.sleep(delay)
    try:
        return meet(coordinator, count, number, timeout=timeout)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)


def together(*numbers: int, count: int, timeout: float = 20.0, counts=None, late: int | None = None) -> list:
    coordinator = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(len(numbers)) as threads:
        started = [
            threads.submit(attempt, coordinator, (counts or {}).get(i, count), i, timeout, 0.5 * (i == late))
            for i in numbers
        ]
        return [future.result(timeout + 30) for future in started]


@pytest.mark.parametrize("late", [None, 0, 2])
def test_all_meet_in_any_order(late):
    assert together(2, 0, 1, count=3, late=late) == [None] * 3


def test_the_port_is_free_again_when_all_have_met():
    coordinator = f"127.0.0.1:{free_port()}"
    for _ in range(2):
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(lambda i: attempt(coordinator, 2, i, 20.0), range(2))) == [None, None]


def test_the_missing_are_named_to_those_who_came():
    found = together(0, 2, count=5, timeout=1.0)
    assert found[0] == found[1] and "processes 1, 3, 4 of 5 did not come within 1 s" in found[0]
    assert "process 1 of 2 did not come" in together(0, count=2, timeout=0.3)[0]


def test_process_0_missing_is_said_with_its_address():
    (found,) = together(1, count=2, timeout=0.5)
    assert found.startswith("process 0 was not at 127.0.0.1:") and "Connection refused" in found


def test_a_number_given_twice():
    found = together(1, 1, 0, count=3)
    assert found == ["two processes have SMKE_PROCESS_ID=1: number them from 0 to 2"] * 3


def test_processes_that_disagree_on_how_many_they_are():
    found = together(0, 1, count=2, counts={1: 3})
    assert found == ["SMKE_NUM_PROCESSES is 2 on process 0 and 3 on process 1: set them alike"] * 2


def test_a_taken_port():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        found = attempt(f"127.0.0.1:{port}", 2, 0, 5.0)
    assert found.startswith(f"process 0 cannot use port {port} (Address already in use)")


def test_strangers_are_ignored():
    port = free_port()

    def knock():
        for greeting in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\x00\xfe\n", b"smke one 2\n", b""):
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                with contextlib.suppress(ConnectionRefusedError):
                    with socket.create_connection(("127.0.0.1", port)) as stranger:
                        stranger.sendall(greeting)
                    break

    with ThreadPoolExecutor(3) as threads:
        host = threads.submit(attempt, f"127.0.0.1:{port}", 2, 0, 20.0)
        threads.submit(knock).result(15)
        assert not host.done()
        assert attempt(f"127.0.0.1:{port}", 2, 1, 20.0) is None and host.result(15) is None


def test_another_program_at_the_address():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as guest:
                        guest.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        found = attempt(f"127.0.0.1:{server.getsockname()[1]}", 2, 1, 0.5)
    assert "another program answers there" in found


@pytest.mark.parametrize("address", ["node1", "node1:", ":9876", "node1:port", "node1:70000"])
def test_an_address_without_host_or_port(address):
    said = attempt(address, 2, 1, 1.0)
    assert said == f"SMKE_COORDINATOR is {address!r}: give host:port of process 0, such as node1:9876"
