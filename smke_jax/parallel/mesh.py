"""All knowledge of devices: the mesh, its one axis, and how batches and states are laid out on it."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from smke_jax.errors import UserError

DATA_AXIS = "data"


def make_mesh(num_devices: int | None = None) -> jax.sharding.Mesh:
    """One data axis over the first `num_devices` devices, all of them by default.

    Axes are Auto: Linen modules fail under JAX's default of Explicit.
    """
    devices = jax.devices()
    if num_devices is not None and num_devices > len(devices):
        raise UserError(f"{num_devices} devices were asked for, this machine shows {len(devices)}")
    devices = devices[:num_devices]
    # Not jax.make_mesh, which may reorder the devices of a pod: process i has to hold the i-th block of rows.
    return jax.sharding.Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, mesh: jax.sharding.Mesh) -> None:
    """Refuses a global batch that does not divide over the devices and the processes."""
    devices, processes = mesh.size, jax.process_count()
    if batch_size % devices or batch_size % processes:
        nearest = max(1, round(batch_size / devices)) * devices
        raise UserError(
            f"batch_size {batch_size} does not divide over {devices} devices: set it to {nearest}, or use fewer devices"
        )


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The layout of states: a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The layout of batches: examples, the first axis, split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def put_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Every process's rows, one process's after the other's, as global arrays sharded over the data axis."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharded(mesh), x), dict(batch))
