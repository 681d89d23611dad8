"""What to do when a device runs out of memory."""

import contextlib
from collections.abc import Iterator

from jax.errors import JaxRuntimeError
from ml_collections import ConfigDict

from smke_jax.errors import UserError


@contextlib.contextmanager
def memory_advice(config: ConfigDict, devices: int) -> Iterator[None]:
    """Turns a device's running out of memory inside the block into a UserError that says what to change in `config`."""
    try:
        yield
    except JaxRuntimeError as error:
        status, _, what = str(error).partition(": ")
        if status != "RESOURCE_EXHAUSTED":
            raise
        reason, remedies = what.splitlines()[0].rstrip("."), ", ".join(_remedies(config, devices))
        raise UserError(f"a device ran out of memory ({reason}): try {remedies}; `smke plan` says what fits") from error


def _remedies(config: ConfigDict, devices: int) -> list[str]:
    """Fields that take less memory than they now do, those that cost the least time first."""
    examples = config.batch_size // devices
    smaller = max(1, min(config.micro_batch or examples, examples) // 2)
    student = "student" in config.passes
    choices = (
        (student and config.student.dtype != "bfloat16", "config.student.dtype=bfloat16"),
        (config.sharding != "fsdp" and devices > 1, "config.sharding=fsdp"),
        (config.loss_impl != "ring", "config.loss_impl=ring"),
        (student and config.student.remat != "blocks", "config.student.remat=blocks"),
        (smaller < examples, f"config.micro_batch={smaller}"),
        (True, "a smaller config.batch_size"),
    )
    return [remedy for helps, remedy in choices if helps]
