"""A profiler trace of a few steps of a run."""

import logging
from pathlib import Path
from typing import Any

import jax

log = logging.getLogger("smke_jax")


class Profiler:
    """Traces `steps` (first, last) into `directory`, for xprof or Perfetto; () traces nothing.

    Operations carry the names of the pass ('student', 'teacher') or term ('itc') that they belong to, and 'optimizer'.
    Only process 0 traces.  Use it as a context manager: a run that ends early still leaves a whole trace.
    """

    def __init__(self, directory: Path, steps: tuple[int, ...]):
        self._directory = directory
        self._first, self._last = steps if steps and jax.process_index() == 0 else (None, None)
        self._running = False

    def step(self, number: int) -> jax.profiler.StepTraceAnnotation:
        """What step `number`, counted from 1, has to run in."""
        if number == self._first:
            jax.profiler.start_trace(self._directory)
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def step_done(self, number: int, outputs: Any) -> None:
        """Ends the trace after its last step, once the devices have finished `outputs`."""
        if self._running and number == self._last:
            jax.block_until_ready(outputs)
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        log.info("profile of steps %d to %d: %s", self._first, self._last, self._directory)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._running:
            self._stop()
