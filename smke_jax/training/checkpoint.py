"""Checkpoints that survive kills, full disks, flipped bits and another number of devices.

Each step is one directory with four items: `params` (all that evaluation, export and a warm start need),
`train` (optimizer state, slots, step, rng), `data` (the input iterator's position) and `meta` (the record
of `checkpoint_record`).  orbax makes writing atomic and places arrays on the devices asked for; it neither
validates what it reads nor falls back to an older step, which is what this file adds.
"""

import contextlib
import itertools
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import orbax.checkpoint as ocp

from smke_jax.errors import UserError
from smke_jax.parallel.process import failing_together, release_others
from smke_jax.training import checkpoint_record as records
from smke_jax.training.checkpoint_record import Damaged
from smke_jax.training.replica_slices import write_small_arrays_whole
from smke_jax.training.retention import NewestAndBest, remove_uncommitted

log = logging.getLogger("smke_jax")

_MAKER = {"params": "model", "train": "optimizer or recipe"}


class Restored(NamedTuple):
    """Everything a run continues from; `step` is the number of updates done."""

    step: int
    params: Any
    train: Any
    data: Any
    meta: Any


@contextlib.contextmanager
def _without_needless_warnings() -> Iterator[None]:
    """orbax warns of its own option as if the folder could not be written, and of a handler that we have chosen."""

    def keep(record: logging.LogRecord) -> bool:
        return not any(text in str(record.msg) for text in ("Given directory is read only", "Type handler registry"))

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


class Checkpointer:
    """The checkpoints of one run: the newest `keep` and the one with the highest metric.

    One training process group writes to a directory; any number of `read_only` ones may look on.  All
    processes of a multi-process run call every method together.  Use it as a context manager, or call
    `close()`: an asynchronous save is only on disk after `wait()` or `close()`.
    """

    def __init__(self, directory: str | Path, *, keep: int = 3, async_save: bool = True, read_only: bool = False):
        if keep < 1:
            raise UserError(f"keep={keep} checkpoints: keep at least 1")
        self.directory = Path(directory).resolve()
        self._async_save, self._read_only = async_save, read_only
        self._saving: int | None = None  # the step of a save whose outcome is not known yet
        self._metrics: dict[int, float] = {}
        if not read_only:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                remove_uncommitted(self.directory)
            except OSError as error:
                raise UserError(f"cannot write checkpoints in {self.directory}: {error.strerror}") from error
        with _without_needless_warnings():
            write_small_arrays_whole()
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    save_interval_steps=0,
                    create=False,
                    read_only=read_only,
                    preservation_policy=NewestAndBest(keep, self.best_step),
                ),
            )
        self._reload()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first, one still being written included; not checked for damage."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the highest metric, the newest of equals; None if none was saved with a metric."""
        ranked = [(self._metrics[step], step) for step in self.steps() if step in self._metrics]
        return max(ranked)[1] if ranked else None

    def save(self, step: int, params: Any, train: Any, data: Any, meta: Any, *, metric: float | None = None) -> bool:
        """Writes one checkpoint; False if this step has one already.

        Args:
          step: number of updates done.
          params, train: pytrees of arrays, typed PRNG keys included; free to be donated on return.
          data, meta: JSON values.
          metric: higher is better; None or not finite leaves the step out of the search for the best.

        Raises:
          UserError: the disk is full or not writable, now or in the earlier save still in progress; or the
            directory holds a later step.
        """
        if self._read_only:
            raise ValueError(f"save on the read-only Checkpointer of {self.directory}")
        self.wait()
        remove_uncommitted(self.directory)
        self._clear_the_way(step)
        if step in self.steps():
            return False
        data, meta = json.loads(json.dumps(data)), json.loads(json.dumps(meta))
        metric = float(metric) if metric is not None and math.isfinite(metric) else None
        record = records.make({"params": params, "train": train}, data, meta, metric)
        if metric is not None:
            self._metrics[step] = metric
        self._saving = step
        with self._explain_write_errors():
            self._manager.save(
                step,
                force=True,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    train=ocp.args.StandardSave(train),
                    data=ocp.args.JsonSave(data),
                    meta=ocp.args.JsonSave(record),
                ),
            )
        if not self._async_save:
            self.wait()
        return True

    def wait(self) -> None:
        """Blocks until the save in progress is on disk; raises UserError if it failed."""
        if self._saving is not None:
            with self._explain_write_errors():
                self._manager.wait_until_finished()
            self._saving = None

    def close(self) -> None:
        """Waits for the save in progress, then frees threads; raises UserError if that save failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def restore_latest(self, abstract_params: Any, abstract_train: Any) -> Restored | None:
        """The newest sound checkpoint, or None in an empty directory.

        The abstract trees hold `ShapeDtypeStruct`s (or arrays) and decide where arrays go: each leaf's
        sharding, or the first device if it has none.  Damaged checkpoints newer than the one returned are
        logged and moved to `damaged-<step>-<n>`, out of the way of the run that continues.

        Raises:
          UserError: there are checkpoints but none is sound, or one was made by another model.
        """
        self.wait()
        return self._newest_sound({"params": abstract_params, "train": abstract_train}, set_aside=True)

    def restore_params(self, abstract_params: Any, step: int | Literal["best"] | None = None) -> tuple[int, Any, Any]:
        """(step, params, meta) without reading the rest, of the newest sound, the best, or a given step.

        Raises:
          UserError: no such checkpoint, it is damaged, or it was made by another model.
        """
        self.wait()
        if step is None:
            found = self._newest_sound({"params": abstract_params}, set_aside=False)
            if found is None:
                raise UserError(f"no checkpoint in {self.directory}: train first, or name another directory")
        else:
            found = self._restore_named(step, abstract_params)
        return found.step, found.params, found.meta

    def _restore_named(self, step: int | Literal["best"], abstract_params: Any) -> Restored:
        number = self.best_step() if step == "best" else step
        have = ", ".join(map(str, self.steps())) or "none"
        if number not in self.steps():
            what = "checkpoint saved with a metric" if step == "best" else f"checkpoint of step {step}"
            raise UserError(f"no {what} in {self.directory}; the steps there are: {have}")
        try:
            return self._restore(number, {"params": abstract_params})
        except Damaged as damage:
            raise UserError(
                f"checkpoint step {number} in {self.directory} is damaged: {damage}; "
                f"choose another of the steps there: {have}"
            ) from damage

    def _newest_sound(self, abstract: Mapping[str, Any], *, set_aside: bool) -> Restored | None:
        damaged: dict[int, Damaged] = {}
        for step in reversed(self.steps()):
            try:
                found = self._restore(step, abstract)
            except Damaged as damage:
                log.warning("skipping the damaged checkpoint step %d in %s: %s", step, self.directory, damage)
                damaged[step] = damage
                continue
            if set_aside:
                self._set_aside(list(damaged))
            return found
        if damaged:
            reasons = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
            raise UserError(
                f"no sound checkpoint in {self.directory} ({reasons}): put back a copy of it, "
                "or start afresh in another directory"
            )
        return None

    def _restore(self, step: int, abstract: Mapping[str, Any]) -> Restored:
        """Reads and checks the items in `abstract` (and `data` with `train`); raises Damaged or UserError."""
        record = self._record(step)
        for item, tree in abstract.items():
            if difference := records.first_difference(record, item, tree):
                raise UserError(
                    f"checkpoint step {step} in {self.directory} was made by a different "
                    f"{_MAKER[item]}: first difference at {difference}"
                )
        args = {item: ocp.args.StandardRestore(records.placed(tree)) for item, tree in abstract.items()}
        if "train" in abstract:
            args["data"] = ocp.args.JsonRestore()
        items = self._read(step, args)
        records.check_trees(record, {item: items[item] for item in abstract})
        if "train" in abstract:
            records.check_data(record, items["data"])
        return Restored(step, items["params"], items.get("train"), items.get("data"), record["meta"])

    def _record(self, step: int) -> dict[str, Any]:
        record = self._read(step, {"meta": ocp.args.JsonRestore()})["meta"]
        records.check_seal(record)
        return record

    def _read(self, step: int, args: Mapping[str, Any]) -> dict[str, Any]:
        """The named items of one step; whatever orbax raises on broken files becomes Damaged."""
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())
        except Exception as error:
            release_others(error)
            if records.out_of_memory(error):
                raise
            code, text = records.os_error(error) or (None, None)
            if code in records.NOT_DAMAGE:
                raise UserError(f"cannot read checkpoint step {step} in {self.directory}: {text}") from error
            raise Damaged(f"{'/'.join(args)} cannot be read: {records.one_line(error)}") from error

    def _clear_the_way(self, step: int) -> None:
        """Moves unreadable directories at or after `step` aside; a readable later one is an error."""
        unreadable = []
        for other in [number for number in self.steps() if number >= step]:
            try:
                self._record(other)
            except Damaged as damage:
                log.warning("moving aside the damaged checkpoint step %d: %s", other, damage)
                unreadable.append(other)
        self._set_aside(unreadable)
        if self.steps() and self.steps()[-1] > step:
            raise UserError(
                f"{self.directory} already holds step {self.steps()[-1]}, later than step {step} "
                "being saved: resume from it or train in another directory"
            )

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Renames steps to damaged-<step>-<n>: a damaged checkpoint may still hold what someone needs."""
        if self._read_only or not steps:
            return
        with failing_together():  # the others go on when it is done
            if jax.process_index() == 0:
                for step in steps:
                    names = (self.directory / f"damaged-{step}-{n}" for n in itertools.count())
                    (self.directory / str(step)).rename(next(name for name in names if not name.exists()))
        self._reload()

    def _reload(self) -> None:
        """Reads the list of steps and their metrics from disk again."""
        self._manager.reload()
        self._metrics.clear()
        for step in self.steps():
            with contextlib.suppress(Damaged):
                metric = self._record(step)["metric"]
                if metric is not None:
                    self._metrics[step] = metric

    @contextlib.contextmanager
    def _explain_write_errors(self) -> Iterator[None]:
        """Turns the operating system's refusal to write `self._saving` into one line; older steps stay."""
        step = self._saving
        try:
            yield
        except Exception as error:
            self._saving = None
            self._metrics.pop(step, None)
            remove_uncommitted(self.directory)
            self._manager.reload()  # it has already forgotten the steps it would have deleted after this save
            code, text = records.os_error(error) or (None, None)
            if code is None:
                raise
            problem = "disk full" if code in records.DISK_FULL else "cannot write"
            newest = f"step {self.steps()[-1]}" if self.steps() else "none"
            raise UserError(
                f"{problem} while saving step {step} in {self.directory}: {text}; "
                f"the newest sound checkpoint is {newest}"
            ) from error
