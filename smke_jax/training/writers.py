"""Where the numbers of a run go: `metrics.jsonl`, TensorBoard if asked for, and one line on the screen."""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax

from smke_jax import atomic
from smke_jax.errors import UserError


class MetricWriter:
    """Appends one JSON object per line to `workdir/metrics.jsonl`, `{"step": 10, "loss": 3.2, …}`.

    Only process 0 writes; on the others every method does nothing.  Use it as a context manager or `close()`.
    """

    def __init__(self, workdir: str | Path, *, tensorboard: bool = False):
        self.path = Path(workdir) / "metrics.jsonl"
        self._file: IO[str] | None = None
        self._board = None
        if jax.process_index() != 0:
            return
        if tensorboard:
            self._board = _open_tensorboard(Path(workdir) / "tensorboard")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _end_with_whole_line(self.path)
            self._file = open(self.path, "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """One line, on disk when this returns; scalars are numbers or 0-d arrays. NaN is written as NaN."""
        if self._file is None:
            return
        values = {name: _number(name, value) for name, value in scalars.items()}
        try:
            self._file.write(json.dumps({"step": int(step), **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, int(step))

    def truncate_after(self, step: int) -> int:
        """Drops lines of steps later than `step`, the one a run resumes from; returns how many.

        A line that is not whole JSON (the writer was killed) is dropped too.  The file is replaced in one
        move, so a kill leaves either the old history or the new one.  TensorBoard's files are left alone.
        """
        if self._file is None:
            return 0
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if (found := _step_of(line)) is not None and found <= step]
        if len(kept) < len(lines):
            self._file.close()
            atomic.write_text(self.path, "".join(line + "\n" for line in kept))
            self._file = open(self.path, "a", encoding="utf-8")
        return len(lines) - len(kept)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Progress:
    """Speed, share of time spent waiting for data, and time left, over the steps since the last log.

    The first step, which compiles, is printed on its own and counts towards nothing else; nor does time
    inside `pause()`.  The line appears on process 0 only.

        progress = Progress(total_steps, batch_size, start_step)
        with progress.data_wait():
            batch = next(iterator)
        state, metrics = step(state, frozen, batch)
        progress.step_done(metrics)                   # blocks on the first call only
        numbers = progress.log(step, loss)            # every so many steps
    """

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        start_step: int = 0,
        *,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._total, self._batch, self._logged = total_steps, batch_size, start_step
        self._stream, self._clock = stream or sys.stderr, clock
        self._first = True
        self._since = clock()
        self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def data_wait(self) -> Iterator[None]:
        """Time inside is time the devices may be waiting for input: wrap `next(iterator)`."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside counts for nothing: wrap evaluation and saving."""
        start, waited = self._clock(), self._waited
        try:
            yield
        finally:
            self._paused += self._clock() - start
            self._waited = waited  # evaluation may read data of its own

    def step_done(self, outputs: Any = None) -> None:
        """Call after every step; the first call waits for `outputs` and reports the compile time."""
        if not self._first:
            return
        jax.block_until_ready(outputs)
        elapsed = self._clock() - self._since - self._paused
        self._print(f"first step, with compilation: {elapsed:.1f} s")
        self._first = False
        self._logged += 1
        self._restart()

    def log(self, step: int, loss: float) -> dict[str, float]:
        """Prints the line for `step` (updates done) and starts a new stretch.

        Returns examples_per_second, data_wait (a fraction) and eta_seconds; empty until a step after the
        first one has been taken.  Fetch the loss before calling, or steps still queued count as done.
        """
        steps, elapsed = step - self._logged, self._clock() - self._since - self._paused
        head = f"step {step}/{self._total}  loss {loss:.4g}"
        if steps <= 0 or elapsed <= 0:
            self._print(head)
            return {}
        numbers = {
            "examples_per_second": steps * self._batch / elapsed,
            "data_wait": self._waited / elapsed,
            "eta_seconds": (self._total - step) * elapsed / steps,
        }
        self._print(
            f"{head}  {numbers['examples_per_second']:,.0f} ex/s  data-wait "
            f"{100 * numbers['data_wait']:.1f} %  ETA {format_duration(numbers['eta_seconds'])}"
        )
        self._logged = step
        self._restart()
        return numbers

    def _restart(self) -> None:
        self._since, self._waited, self._paused = self._clock(), 0.0, 0.0

    def _print(self, line: str) -> None:
        if jax.process_index() == 0:
            print(line, file=self._stream, flush=True)


def peak_memory_gib() -> float:
    """Most memory used so far: of the fullest device of this process, or of the process where devices do not say."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return max(x["peak_bytes_in_use"] for x in stats) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def format_duration(seconds: float) -> str:
    """'45 s', '3 min 05 s', '2 h 07 min' or '3 d 04 h'."""
    seconds = round(seconds)
    for unit, size, part, part_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // part_size:02d} {part}"
    return f"{seconds} s"


def _number(name: str, value: Any) -> int | float:
    if getattr(value, "ndim", 0) != 0:
        raise ValueError(f"metric {name!r} has shape {value.shape}, want a scalar")
    return value.item() if hasattr(value, "item") else value


def _step_of(line: str) -> int | None:
    """The step of one line, or None if the line is not a whole record."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return None
    return step if isinstance(step, int) else None


def _end_with_whole_line(path: Path) -> None:
    """Ends the file with a newline, so that a line cut short by a kill cannot swallow the next one."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with open(path, "ab") as file:
            file.write(b"\n")


def _open_tensorboard(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        remedy = "pip install 'smke_jax[tensorboard]'"
        raise UserError(f"TensorBoard output needs tensorboardX: {remedy}") from error
    return SummaryWriter(str(folder))
