"""All knowledge of devices: the mesh, its axes, and how batches are laid out on it."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from smke_jax.errors import UserError

FSDP_AXIS = "fsdp"
DATA_AXES = ("data", FSDP_AXIS)  # examples are split over both, in this order


def make_mesh(num_devices: int | None = None, *, fsdp_size: int = 1) -> jax.sharding.Mesh:
    """('data', 'fsdp') over the first `num_devices` devices, all of them by default.

    `fsdp_size` neighbouring devices share one copy of what `smke_jax.parallel.rules` splits; 0 is all of them.
    Axes are Auto: Linen modules fail under JAX's default of Explicit.
    """
    devices = jax.devices()
    if num_devices is not None and num_devices > len(devices):
        raise UserError(f"{num_devices} devices were asked for, this machine shows {len(devices)}")
    devices = devices[:num_devices]
    fsdp_size = fsdp_size or len(devices)
    if len(devices) % fsdp_size:
        raise UserError(f"config.fsdp_size {fsdp_size} does not divide {len(devices)} devices: set one that does, or 0")
    # Not jax.make_mesh, which may reorder the devices of a pod: process i has to hold the i-th block of rows.
    grid = np.array(devices).reshape(-1, fsdp_size)
    return jax.sharding.Mesh(grid, DATA_AXES, axis_types=(AxisType.Auto,) * 2)


def check_batch_size(batch_size: int, mesh: jax.sharding.Mesh, micro_batch: int = 0) -> None:
    """Refuses a global batch that does not divide over devices, processes and micro-batches (0: no micro-batches)."""
    devices, processes = mesh.size, jax.process_count()
    if batch_size % devices or batch_size % processes:
        nearest = max(1, round(batch_size / devices)) * devices
        raise UserError(
            f"batch_size {batch_size} does not divide over {devices} devices: set it to {nearest}, or use fewer devices"
        )
    per_device = batch_size // devices
    if micro_batch and per_device > micro_batch and per_device % micro_batch:
        fits = max(k for k in range(1, micro_batch + 1) if per_device % k == 0)
        raise UserError(
            f"config.micro_batch {micro_batch} does not divide the {per_device} examples of each device "
            f"(batch_size {batch_size} over {devices}): set it to {fits}, or change batch_size"
        )


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The layout of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The layout of batches: examples, the first axis, split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXES))


def sharded_chunks(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The layout of (chunks, examples, …): every chunk split over the devices."""
    return NamedSharding(mesh, PartitionSpec(None, DATA_AXES))


def put_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Every process's rows, one process's after the other's, as global arrays sharded over the devices."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharded(mesh), x), dict(batch))
