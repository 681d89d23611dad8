"""What stays in a checkpoint directory, and what goes."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax


class NewestAndBest:
    """orbax preservation policy: the newest `keep` steps, and the one `best_step()` names.

    orbax's own `BestN` ranks by a separate metrics item that it reads unchecked; the metric here is part of
    the sealed record.  orbax deletes only after the new checkpoint is on disk.
    """

    def __init__(self, keep: int, best_step: Callable[[], int | None]):
        self._keep, self._best_step = keep, best_step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = sorted(info.step for info in checkpoints)[-self._keep :]
        best = self._best_step()
        return [info.step in newest or info.step == best for info in checkpoints]


def remove_uncommitted(directory: Path) -> None:
    """Deletes what a killed or failed save left half written; it was never a checkpoint."""
    if jax.process_index() != 0:
        return
    for path in directory.glob("*.orbax-checkpoint-tmp*"):
        for _ in range(20):  # threads of a save that failed a moment ago may still add files
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                break
            time.sleep(0.05)
