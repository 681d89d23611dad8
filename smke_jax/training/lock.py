"""A run directory has one run at a time."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jax

from smke_jax.errors import UserError
from smke_jax.parallel.process import failing_together

LOCK = ".lock"
log = logging.getLogger("smke_jax")


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """While the block lasts, no other run begins in `workdir`: two would write over each other's checkpoints.

    The system lets go of the lock when the process ends, however it ends.  Of several processes of one run the first
    holds it.  Raises UserError on all of them where another run has it, with its process and host.
    """
    with contextlib.ExitStack() as held:
        with failing_together():
            if jax.process_index() == 0:
                _take(held.enter_context(open(workdir / LOCK, "a+")), workdir)
        yield


def _take(file, workdir: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(
            f"{workdir} is in use by {file.read().strip() or 'another run'}: wait until it is done, or give another "
            "--workdir"
        ) from None
    except OSError as error:  # some network file systems have no locks
        log.warning("%s cannot be locked (%s): start no second run there", workdir, error.strerror)
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
