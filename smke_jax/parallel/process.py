"""One process among several: start-up, agreeing with the others, stopping and failing without leaving them waiting."""

import contextlib
import importlib.util
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from smke_jax.errors import UserError
from smke_jax.parallel.rendezvous import meet

START_TIMEOUT = 300.0  # seconds: hosts of one job may come up minutes apart
INTERRUPTED = b"\nstopping after this step, and saving; Ctrl-C again stops at once\n"
GRACE = 5.0  # seconds that a process which fails leaves the others to fail by themselves


def start_processes(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes of this run; call it before anything touches a device.

    `coordinator` is host:port of process 0.  What is not given here is read from SMKE_COORDINATOR, SMKE_NUM_PROCESSES
    and SMKE_PROCESS_ID; without any of them SLURM or a TPU's metadata say it, as jax reads them.  On a single host,
    and with one process asked for, there is nothing to do.

    Raises UserError where that is incomplete, or where not all are there within SMKE_START_TIMEOUT seconds.
    """
    given = {"SMKE_COORDINATOR": coordinator, "SMKE_NUM_PROCESSES": num_processes, "SMKE_PROCESS_ID": process_id}
    given = {name: os.environ.get(name) if value is None else value for name, value in given.items()}
    timeout = _number("SMKE_START_TIMEOUT", os.environ.get("SMKE_START_TIMEOUT", START_TIMEOUT), float)
    missing = [name for name, value in given.items() if value in (None, "")]
    if given["SMKE_NUM_PROCESSES"] in (1, "1"):
        return
    if not missing:
        count, number = (_number(name, given[name]) for name in ("SMKE_NUM_PROCESSES", "SMKE_PROCESS_ID"))
        if not 0 <= number < count:
            raise UserError(f"SMKE_PROCESS_ID is {number}: of {count} processes the numbers are 0 to {count - 1}")
        meet(given["SMKE_COORDINATOR"], count, number, timeout=timeout)
        # Everything is known, and SLURM's idea of one process per device must not hide this one's other devices.
        _join("the others", timeout, given["SMKE_COORDINATOR"], count, number, cluster_detection_method="deactivate")
    elif len(missing) < len(given):
        raise UserError(f"{', '.join(missing)} not set: one process among several needs all of {', '.join(given)}")
    elif os.environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_PROCID" in os.environ:
        _check_one_task_per_gpu()
        _join(f"the {os.environ['SLURM_NTASKS']} tasks of this SLURM job (srun starts them)", timeout)
    elif "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or _on_a_tpu_machine():
        _join("the other hosts of this TPU", timeout)


def _number(name: str, value: Any, kind: Callable = int):
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"{name} is {value!r}: give a number") from None


def _check_one_task_per_gpu() -> None:
    """jax gives every SLURM task one GPU, so that those of a node with fewer tasks would stand idle."""
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0].partition(",")[0]
    if gpus.isdigit() and tasks.isdigit() and int(gpus) > int(tasks):
        raise UserError(
            f"this SLURM step has {gpus} GPUs and {tasks} tasks on a node, and a task takes one GPU: "
            f"start it with srun --ntasks-per-node={gpus}"
        )


def _on_a_tpu_machine() -> bool:
    # jax sets the variable where it finds no TPU chips; asking for devices would be too early.
    return importlib.util.find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in os.environ


def _join(others: str, timeout: float, *place: Any, **options: Any) -> None:
    def give_up():  # of its own accord jax would end the process with a stack trace of C++
        print(f"error: {others} did not all come within {timeout:g} s; {remedy}", file=sys.stderr, flush=True)
        os._exit(2)

    remedy = "SMKE_START_TIMEOUT=SECONDS waits longer, SMKE_NUM_PROCESSES=1 trains alone"
    timer = threading.Timer(timeout, give_up)
    timer.start()
    try:
        jax.distributed.initialize(*place, **options, initialization_timeout=int(timeout) + 60)
    except (OSError, ValueError, RuntimeError) as error:  # what describes the job cannot be read
        raise UserError(f"{others} cannot be joined ({str(error).splitlines()[0]}); {remedy}") from error
    finally:
        timer.cancel()
    if jax.process_index():
        logging.getLogger("smke_jax").setLevel(logging.WARNING)  # process 0 speaks for all


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """A UserError in this block on any process is raised on all of them at its end.

    For what hosts may find differently, such as their files, so that none waits for one that is gone.  The block may
    not communicate.
    """
    if jax.process_count() == 1:
        yield
        return
    own = None
    try:
        yield
    except UserError as error:
        own = error
    for process, message in enumerate(_gather(own and str(own))):
        if message:
            raise own or UserError(f"process {process}: {message}")


def check_shared(path: Path) -> None:
    """Raises UserError on all processes where one of them does not see `path`, which process 0 has written."""
    with failing_together():
        if not path.exists():
            raise UserError(f"{path} of process 0 is not here: give a --workdir that all processes share")


def release_others(error: Exception) -> None:
    """Lets the others go on, with an AssertionError, where `error` kept this process from their barrier.

    Such barriers, `sync_global_devices`, are at the end of what orbax does on all processes.
    """
    if "sync_global_devices name mismatch" not in str(error):  # it is not that this one was let go itself
        with contextlib.suppress(AssertionError):
            multihost_utils.sync_global_devices("released")


def check_same(values: Mapping[str, Any]) -> None:
    """Raises UserError on all processes, naming the first key, where JSON `values` are not the same on all of them."""
    if jax.process_count() == 1:
        return
    first, *others = _gather(values)
    for process, other in enumerate(others, 1):
        for key in {**first, **other}:
            if first.get(key) != other.get(key):
                raise UserError(
                    f"{key} is {first.get(key)!r} on process 0 and {other.get(key)!r} on process {process}: "
                    "start the same command with the same files on all of them"
                )


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """Every process's rows, one process's after the other's: (b, …) -> (processes · b, …) on all of them."""
    return multihost_utils.process_allgather(rows, tiled=True)


def _gather(value: Any) -> list[Any]:
    """The JSON `value` of every process, in their order."""
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    rows = multihost_utils.process_allgather(np.pad(data, (0, max(lengths) - len(data))))
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths)]


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Yields (step) -> whether to stop because SIGTERM or Ctrl-C came, to any process: for all at the same step.

    Call it at every step; a loop that ends so ends at a whole step and can save (preemption).  A second Ctrl-C is a
    KeyboardInterrupt.
    """
    received = threading.Event()
    alone = jax.process_count() == 1
    # Several processes agree on the first step that none has begun.
    asked = (lambda step: received.is_set()) if alone else multihost_utils.reached_preemption_sync_point
    if threading.current_thread() is not threading.main_thread():  # as in some notebooks: nothing to hook
        yield asked
        return

    def interrupted(number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(2, INTERRUPTED)  # `print` may be at work on the same stream
        if alone:
            received.set()
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    hooked = {signal.SIGINT: interrupted}
    if alone:  # else jax has caught the signal since start-up
        hooked[signal.SIGTERM] = lambda number, frame: received.set()
    previous = {number: signal.getsignal(number) for number in hooked}
    # A shell lets what it runs in the background ignore Ctrl-C.
    hooked = {number: handler for number, handler in hooked.items() if previous[number] != signal.SIG_IGN}
    for number, handler in hooked.items():
        signal.signal(number, handler)
    try:
        yield asked
    finally:
        for number in hooked:
            signal.signal(number, previous[number])


@contextlib.contextmanager
def leaving_on_error() -> Iterator[None]:
    """Where this block fails, the process ends within seconds, and so the others learn of it.

    At its exit jax waits minutes for all processes to come to theirs, while those may wait for this one in a
    collective.  They see it gone when their connection breaks (CPUs: at once), or when jax, which misses its
    heartbeats for 100 s, ends them with a message of its own.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        lost = "Gloo" in str(error)
        status = 2 if lost or isinstance(error, UserError | OSError) else 1
        _end_within(GRACE if jax.process_index() else 2 * GRACE, status)
        if lost:
            raise UserError(
                "lost another process of this run, which says why; the same command continues from the last "
                f"checkpoint ({str(error).splitlines()[0]})"
            ) from error
        raise


def _end_within(seconds: float, status: int) -> None:
    # Time for all to exit in order where all of them fail alike; process 0 later, as jax ends all others with it.
    def end():
        sys.stdout.flush()
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
