"""What to do when a device runs out of memory."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.errors import JaxRuntimeError

from smke_jax.errors import UserError
from smke_jax.parallel.mesh import rows_at_once


@contextlib.contextmanager
def memory_advice(remedies: Sequence[str]) -> Iterator[None]:
    """Turns a device's running out of memory inside the block into a UserError that names `remedies`."""
    try:
        yield
    except JaxRuntimeError as error:
        status, _, what = str(error).partition(": ")
        if status != "RESOURCE_EXHAUSTED":
            raise
        reason = what.splitlines()[0].rstrip(".")
        raise UserError(
            f"a device ran out of memory ({reason}): try {', '.join(remedies)}; `smke plan` says what fits"
        ) from error


def remedies(flat: Mapping[str, Any], devices: int) -> list[str]:
    """Fields of a flattened config that take less memory than they now do, those that cost the least time first."""
    batch_size = flat["config.batch_size"]
    smaller = max(1, rows_at_once(batch_size, devices, flat["config.micro_batch"]) // 2)
    parts = [key for key in flat if key.startswith("config.networks.")]
    return [
        *(f"{key}=bfloat16" for key in parts if key.endswith(".dtype") and flat[key] != "bfloat16"),
        *(["config.sharding=fsdp"] if flat["config.sharding"] != "fsdp" and devices > 1 else []),
        *(["config.loss_impl=ring"] if flat["config.loss_impl"] != "ring" else []),
        *(f"{key}=blocks" for key in parts if key.endswith(".remat") and flat[key] != "blocks"),
        *([f"config.micro_batch={smaller}"] if smaller < batch_size // devices else []),
        "a smaller config.batch_size",
    ]
