"""Meeting before jax starts: who is missing, or there twice, is said in one line instead of a C++ stack trace.

Where a process is missing, has another's number, or finds the port taken, `jax.distributed.initialize` ends the
process with a signal that Python cannot catch.  So process 0 first listens on the coordinator's port itself, and
leaves it to jax when everyone has come.
"""

import contextlib
import os
import socket
import time

from smke_jax.errors import UserError

PATIENCE = 10.0  # seconds that a process which has reached process 0 waits beyond its own time limit for an answer


def meet(coordinator: str, num_processes: int, process_id: int, *, timeout: float) -> None:
    """Returns when all processes have come to `coordinator` (host:port), an address of process 0.

    Raises UserError on every process that is there when one is missing after `timeout` seconds, when two have the
    same number, or when they disagree on how many they are.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"SMKE_COORDINATOR is {coordinator!r}: give host:port of process 0, such as node1:9876")
    if process_id:
        problem = _attend(host.strip("[]"), int(port), num_processes, process_id, timeout)
    else:
        problem = _receive(int(port), num_processes, timeout)
    if problem:
        raise UserError(problem)


def _receive(port: int, num_processes: int, timeout: float) -> str:
    """Process 0: waits for the others and tells all of them the same: '' or what is wrong."""
    deadline = time.monotonic() + timeout
    try:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        server = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        return (
            f"process 0 cannot use port {port} ({os.strerror(error.errno)}): give another in SMKE_COORDINATOR, "
            "and every process a SMKE_PROCESS_ID of its own"
        )
    guests: dict[int, socket.socket] = {}
    problem = ""
    with contextlib.ExitStack() as open_sockets:
        open_sockets.enter_context(server)
        while not problem and len(guests) < num_processes - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):  # nobody came, or something that is none of our processes
                guest = open_sockets.enter_context(server.accept()[0])
                guest.settimeout(PATIENCE)
                number, count = (int(word) for word in _read(guest).removeprefix("smke ").split())
                problem = _objection(number, count, num_processes, guests)
                guests[-1 if problem else number] = guest
        if not problem and len(guests) < num_processes - 1:
            missing = [str(i) for i in range(1, num_processes) if i not in guests]
            problem = (
                f"process{'es' * (len(missing) > 1)} {', '.join(missing)} of {num_processes} did not come within "
                f"{timeout:g} s: see whether all were started, with the same SMKE_COORDINATOR "
                "(SMKE_START_TIMEOUT=SECONDS waits longer)"
            )
        for guest in guests.values():
            with contextlib.suppress(OSError):  # it did not wait; jax will miss it
                guest.sendall(f"smke {problem}\n".encode())
    return problem


def _objection(number: int, count: int, num_processes: int, guests) -> str:
    if count != num_processes:
        return f"SMKE_NUM_PROCESSES is {num_processes} on process 0 and {count} on process {number}: set them alike"
    if number in guests or not 0 < number < num_processes:
        return f"two processes have SMKE_PROCESS_ID={number}: number them from 0 to {num_processes - 1}"
    return ""


def _attend(host: str, port: int, num_processes: int, process_id: int, timeout: float) -> str:
    """Any other process: comes to process 0 and returns what it says."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(1.0, deadline - time.monotonic())) as connection:
                connection.settimeout(timeout + PATIENCE)  # process 0 may have started later
                connection.sendall(f"smke {process_id} {num_processes}\n".encode())
                answer = _read(connection)
                if answer.startswith("smke "):
                    return answer.removeprefix("smke ").strip()
                reason = "another program answers there" if answer else "it hung up"
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > deadline:
            return (
                f"process 0 was not at {host}:{port} within {timeout:g} s ({reason}): see whether it was started, and "
                "whether SMKE_COORDINATOR is its address (SMKE_START_TIMEOUT=SECONDS waits longer)"
            )
        time.sleep(0.2)


def _read(connection: socket.socket) -> str:
    """One line; what is no text is read as something."""
    with connection.makefile("r", encoding="utf-8", errors="replace") as lines:
        return lines.readline(4096)
