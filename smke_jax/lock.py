"""A lock that one process holds at a time; the system lets go of it when the process ends, however it ends."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from smke_jax.errors import UserError

log = logging.getLogger("smke_jax")


@contextlib.contextmanager
def locked(path: Path, refusal: Callable[[str], str]) -> Iterator[None]:
    """Holds the file `path`, which says who holds it, while the block lasts.

    refusal: what to say to the user, given the holder, such as 'process 12 on host'
    Raises UserError(refusal(holder)) where another process has it.  A file system without locks gets a warning.
    """
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(refusal(file.read().strip() or "another process")) from None
        except OSError as error:  # some network file systems have no locks
            log.warning("%s cannot be locked (%s): let no second process write there", path, error.strerror)
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
