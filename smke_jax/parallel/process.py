"""One process among several hosts: start-up, and agreeing on when to stop."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils


def start_processes() -> None:
    """Joins the other hosts of a TPU pod or SLURM job; on a single host there is nothing to do.

    Elsewhere set SMKE_COORDINATOR=host:port, SMKE_NUM_PROCESSES and SMKE_PROCESS_ID on every host.
    """
    coordinator = os.environ.get("SMKE_COORDINATOR")
    if coordinator:
        jax.distributed.initialize(
            coordinator, int(os.environ["SMKE_NUM_PROCESSES"]), int(os.environ["SMKE_PROCESS_ID"])
        )
    elif os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        jax.distributed.initialize()


def any_process(flag: bool, step: int, *, every: int) -> bool:
    """Whether `flag` is set anywhere; several processes ask each other only at steps that are a multiple of `every`.

    All of them have to leave the loop at the same step, or the others wait for ever in a collective.
    """
    if jax.process_count() == 1:
        return flag
    return not step % every and bool(np.any(multihost_utils.process_allgather(np.array([flag]))))


def process_suffix() -> str:
    """'' for a single process, else what keeps the processes' files apart."""
    return f"-process-{jax.process_index()}" if jax.process_count() > 1 else ""
