"""All knowledge of devices: the mesh, its axes, and how batches are laid out on it."""

from collections.abc import Callable
from typing import Any

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
    # Not jax.make_mesh, nor by number as on a pod: process i has to hold the i-th block of rows.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if num_devices is not None and num_devices > len(devices):
        raise UserError(f"{num_devices} devices were asked for, this machine shows {len(devices)}")
    if num_devices not in (None, len(devices)) and jax.process_count() > 1:
        raise UserError(f"config.num_devices is {num_devices}: several processes need 0, all their {len(devices)}")
    devices = devices[:num_devices]
    fsdp_size = fsdp_size or len(devices)
    if len(devices) % fsdp_size:
        raise UserError(f"config.fsdp_size {fsdp_size} does not divide {len(devices)} devices: set one that does, or 0")
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


def rows_at_once(batch_size: int, devices: int, micro_batch: int = 0) -> int:
    """Rows of a device whose activations are held at once, of a global batch; micro_batch 0 holds all of them."""
    rows = batch_size // devices
    return min(micro_batch or rows, rows)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The layout of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The layout of batches: examples, the first axis, split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXES))


def sharded_chunks(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The layout of (chunks, examples, …): every chunk split over the devices."""
    return NamedSharding(mesh, PartitionSpec(None, DATA_AXES))


def divisible(batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """`batch_size` rounded up to what divides over the devices."""
    return -(-batch_size // mesh.size) * mesh.size


def put_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Every process's rows, one process's after the other's, as global arrays sharded over the devices."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharded(mesh), x), dict(batch))


def put_spread(arrays: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Arrays (N, …) that every process holds, their rows spread over the devices.

    What divides over the devices is N rounded up: rows of -1 come last.  No process reads other rows than its own.
    """

    def put(x):
        shape = (divisible(len(x), mesh), *x.shape[1:])

        def rows(index):
            first, last, _ = index[0].indices(shape[0])
            own = x[first:last]
            filling = np.full((last - first - len(own), *x.shape[1:]), -1, x.dtype)
            return np.concatenate([own, filling])

        return jax.make_array_from_callback(shape, sharded(mesh), rows)

    return {name: put(x) for name, x in arrays.items()}


def made_on_host(make: Callable[[], Any], where: Any) -> Any:
    """The arrays that `make()` returns, computed on the host's CPU, then laid out as the shardings `where` say.

    `where` is one sharding, a tree with the structure of the result, or a function from the result to such a tree,
    which spares tracing `make` for its shapes.  For networks as they begin: XLA for GPUs took more than two minutes to
    compile the random numbers of a network of base size (H200, jax 0.11.2), XLA for CPUs takes ten seconds, and a seed
    gives the same network on every kind of device.  Every process computes all of it, and the host needs memory for it.
    Raises UserError where JAX was told to leave the CPU out.
    """
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise UserError(
            "networks begin on the CPU, and JAX_PLATFORMS leaves it out: name it last, as in JAX_PLATFORMS=cuda,cpu"
        ) from None
    with jax.default_device(host):
        made = jax.jit(make)()
    where = where(made) if callable(where) else where
    return jax.tree.map(lambda sharding, part: jax.tree.map(lambda x: _put(x, sharding), part), where, made)


def _put(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
