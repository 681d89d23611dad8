"""How orbax divides an array that every device holds: a large one into a slice per device, a small one not at all."""

import functools

import jax
import orbax.checkpoint as ocp

# orbax exports no such store, and without it the type of PRNG keys is lost.
from orbax.checkpoint._src.metadata.array_metadata_store import Store

SMALLEST = 2**20  # bytes of a slice


@functools.cache  # once for a process: orbax has one table of handlers, and warns of every change
def write_small_arrays_whole() -> None:
    """Makes all checkpoints of this process write an array whole if the slices of it would be under SMALLEST bytes.

    orbax alone slices every array, and each slice is a program of its own: for eight devices and thirty shapes of
    parameters the first save would compile 240 programs, 14 seconds on a CPU.
    """
    handler = ocp.type_handlers.ArrayHandler(
        array_metadata_store=Store(), min_slice_bytes_for_replica_parallel=SMALLEST
    )
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
