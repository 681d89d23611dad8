"""Which checkpoints stay on disk."""

from collections.abc import Callable, Sequence
from typing import Any


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
