"""A run directory has one run at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from smke_jax.lock import locked
from smke_jax.parallel.process import failing_together

LOCK = ".lock"


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """While the block lasts, no other run begins in `workdir`: two would write over each other's checkpoints.

    Of several processes of one run the first holds the lock.  Raises UserError on all of them where another run has
    it, with its process and host.
    """

    def refusal(holder: str) -> str:
        return f"{workdir} is in use by {holder}: wait until it is done, or give another --workdir"

    with contextlib.ExitStack() as held:
        with failing_together():
            if jax.process_index() == 0:
                held.enter_context(locked(workdir / LOCK, refusal))
        yield
