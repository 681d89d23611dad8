"""The compiled train step of a config and what it needs per device, with nothing made but shapes."""

import math
from typing import Any, NamedTuple

import jax
from jax.extend.backend import clear_backends
from ml_collections import ConfigDict

from smke_jax.errors import UserError
from smke_jax.parallel.devices import Device
from smke_jax.parallel.mesh import check_batch_size, divisible
from smke_jax.studies.plan.assumed import CORPUS, shapes_only
from smke_jax.studies.plan.flops import counted
from smke_jax.studies.plan.traffic import Traffic, traffic
from smke_jax.training.build import build_step
from smke_jax.training.frozen import frozen_shapes

# Options of the compiler for simulated devices.  Their machine code never runs, so it need not be good.  Accelerators
# schedule for little memory; the CPU's default does not, and hides there what rematerialisation saves.  All-reduces
# stay apart, as a combined one no longer says which of its parts were of bfloat16 (`traffic`).
SIMULATED = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_disable_hlo_passes": "cpu-all-reduce-combiner",
}

MOST_SIMULATED = 2048  # CPU devices of one process: above, XLA takes them for those of another


class Program(NamedTuple):
    """What one device holds and does in one step."""

    memory: dict[str, int]  # bytes by what they are for
    flops: dict[str, float]  # {precision: FLOPs of matrix products}, those that are repeated to save memory included
    traffic: Traffic
    parameters: dict[str, int]  # {'trained' | 'frozen': scalars}, of the whole model

    @property
    def total_memory(self) -> int:
        return sum(self.memory.values())


def take_devices(device: Device, count: int) -> bool:
    """Makes JAX show `count` devices to compile for; whether they are such as `device`, or simulated on the CPU.

    Call it before any array is made: those of a backend that is exchanged are lost.
    """
    here = jax.devices()
    if here[0].device_kind != device.kind and count > MOST_SIMULATED:
        raise UserError(f"{count} devices are more than the {MOST_SIMULATED} that one process can simulate")
    if here[0].device_kind == device.kind and len(here) >= count:
        return True
    if here[0].platform != "cpu" or len(here) < count:
        clear_backends()
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    return False


def compile_step(config: ConfigDict, images: int = 0) -> Program:
    """Compiles the train step of `config` (as from `planned`) for the first config.num_devices devices.

    images: see `shapes_only`
    """
    experiment = shapes_only(config, images)
    check_batch_size(config.batch_size, experiment.mesh, config.micro_batch)
    _, _, state, run = build_step(config, experiment)
    rows = divisible(max(images, CORPUS), experiment.mesh)
    frozen, batch = frozen_shapes(experiment.recipe, experiment.shapes, rows), experiment.batch
    traced = run.trace(state, frozen, batch)
    compiled = traced.lower().compile(SIMULATED if experiment.mesh.devices.flat[0].platform == "cpu" else None)
    devices = experiment.mesh.size
    return Program(
        _memory(compiled, state, frozen, batch),
        {precision: flops / devices for precision, flops in counted(traced.jaxpr.jaxpr).items()},
        traffic(compiled.as_text()),
        {"trained": _scalars(state.params), "frozen": _scalars(frozen)},
    )


def _memory(compiled, state, frozen, batch) -> dict[str, int]:
    """Arguments from their layouts, the rest from the compiler's assignment of buffers."""
    layouts, _ = compiled.input_shardings
    held = jax.tree.map(_bytes_per_device, (state, frozen, batch), tuple(layouts))
    stats = compiled.memory_analysis()
    return {
        "parameters": _sum(held[0].params),
        "optimiser state": _sum(held[0].opt_state),
        "moving averages": _sum(held[0].averages),
        "slots": _sum(held[0].slots),
        "frozen parameters": _sum(held[1]),
        "batch": _sum(held[2]),
        "temporaries": stats.temp_size_in_bytes,
        "outputs not in place": stats.output_size_in_bytes - stats.alias_size_in_bytes,
    }


def _bytes_per_device(x, layout) -> int:
    """`layout` is None of what the step never reads, such as the last norm of a teacher: it is held whole."""
    return math.prod(x.shape if layout is None else layout.shard_shape(x.shape)) * x.dtype.itemsize


def _sum(tree: Any) -> int:
    return sum(jax.tree.leaves(tree))


def _scalars(tree: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
