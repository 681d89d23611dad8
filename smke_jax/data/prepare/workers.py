"""Worker processes that decode and shrink images, while one process reads the dataset and writes in its order."""

import collections
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from smke_jax.data.prepare.check import Checked, check
from smke_jax.data.prepare.items import Item
from smke_jax.data.prepare.journal import Outcome
from smke_jax.errors import UserError

FIRST = 256  # images of a split that are checked without workers, which take about as long to start
CHUNK = 8  # images that go to a worker together
CHUNK_BYTES = 4 << 20  # of images that are not in files of their own; fewer go together where they are larger
CHUNKS = 2  # of each worker, waiting or checked, so that a photo that takes long does not stop the others


class Workers:
    """`count` processes that check images.  To be used in a `with`, which ends the processes.

    They start when a split has more than FIRST images.  With a `count` of 1, this process does the work.  At most
    CHUNK · (CHUNKS · count + 1) images are in memory.
    """

    def __init__(self, count: int, max_side: int | None):
        self._count, self._max_side = count, max_side
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def checked(self, items: Iterator[Item]) -> Iterator[Checked]:
        """Yields each item in order with what became of it.

        Raises:
          UserError: a worker was killed.
        """
        for item in itertools.islice(items, FIRST) if self._count > 1 else items:
            yield check(item, self._max_side)
        waiting: collections.deque[tuple[list[Item], concurrent.futures.Future]] = collections.deque()
        try:
            for chunk in _chunks(items):
                waiting.append((chunk, self._submit(chunk)))
                if len(waiting) > CHUNKS * self._count:
                    yield from _results(*waiting.popleft())
            while waiting:
                yield from _results(*waiting.popleft())
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, often for want of memory: run the same command again with fewer --workers"
            ) from None

    def _submit(self, chunk: list[Item]) -> concurrent.futures.Future:
        if self._pool is None:
            # Processes that are forked would take along JAX, and locks that other threads hold.
            context = multiprocessing.get_context("spawn")
            # Not under `_without_interrupts`: what Python starts beside the pool would lift the block.
            self._pool = concurrent.futures.ProcessPoolExecutor(self._count, context, initializer=_end_with_parent)
        with _without_interrupts():  # the pool starts its processes here, one at a time
            return self._pool.submit(_check_all, chunk, self._max_side)


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    chunk, size = [], 0
    for item in items:
        chunk.append(item)
        size += 0 if isinstance(item.image, Path) else len(item.image)
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _check_all(items: list[Item], max_side: int | None) -> list[tuple[Outcome, bytes | None]]:
    """Works in a worker process.  Bytes that came with an item do not go back."""
    checked = (check(item, max_side) for item in items)
    return [(outcome, None if data is item.image else data) for item, outcome, data in checked]


def _results(items: list[Item], future: concurrent.futures.Future) -> Iterator[Checked]:
    for item, (outcome, data) in zip(items, future.result(), strict=True):
        yield item, outcome, item.image if data is None and not outcome.reason else data


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that start in here never see Ctrl-C, which reaches all processes of a terminal; this one does, after.

    Each of them would print a traceback of its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Ends this worker when the process that started it is killed; else it would wait for work forever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
