"""Start-up of one process among several hosts."""

import os

import jax


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
