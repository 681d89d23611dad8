"""The compiled train step of a config and what it needs per device, with nothing made but shapes."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.extend.backend import clear_backends
from ml_collections import ConfigDict

from smke_jax.convert.params_file import params_path
from smke_jax.data.tokenizer import load_tokenizer
from smke_jax.errors import UserError
from smke_jax.parallel.mesh import check_batch_size
from smke_jax.studies.plan.devices import Device
from smke_jax.studies.plan.flops import counted, step_inputs
from smke_jax.studies.plan.traffic import Traffic, traffic
from smke_jax.training.experiment import Experiment, build_mesh, build_step, check_model, resolve
from smke_jax.training.frozen import frozen_shapes
from smke_jax.training.recipe import build_recipe
from smke_jax.training.start import start_tokenizer

# Options of the compiler for simulated devices.  Their machine code never runs, so it need not be good.  Accelerators
# schedule for little memory; the CPU's default does not, and hides there what rematerialisation saves.
SIMULATED = {"xla_backend_optimization_level": 0, "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}

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


def planned(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """(`config` resolved, what was assumed of files that are not there); needs no data, weights or tokenizer."""
    config, assumed = config.copy_and_resolve_references(), []
    path = config.teacher.checkpoint
    if "teacher" in config.passes and path != "random" and not params_path(path).is_file():
        assumed.append(f"no weights at {path!r}: the teacher is what the fields of config.teacher say")
        config.teacher.checkpoint = "random"
    config = resolve(config)
    given = config.data.tokenizer or start_tokenizer(config)
    if given and Path(given).is_dir():
        config.data.vocab_size = load_tokenizer(given).vocab_size
    elif "student" in config.passes:
        assumed.append(f"no tokenizer: the vocabulary has config.data.vocab_size = {config.data.vocab_size} tokens")
    student = config.student
    student.init = student.image.init = student.text.init = "random"  # sizes do not depend on where they start from
    return config, assumed


def compile_step(config: ConfigDict) -> Program:
    """Compiles the train step of `config` (as from `planned`) for the first config.num_devices devices."""
    recipe = build_recipe(config, vocab_size=config.data.vocab_size)
    recipe, shapes = step_inputs(recipe, config)
    experiment = Experiment(config, build_mesh(config), None, recipe)
    check_batch_size(config.batch_size, experiment.mesh, config.micro_batch)
    check_model(experiment, shapes)
    step, frozen = build_step(experiment, shapes), frozen_shapes(experiment, shapes)
    traced = step.run.trace(step.state, frozen, shapes)
    compiled = traced.lower().compile(SIMULATED if experiment.mesh.devices.flat[0].platform == "cpu" else None)
    devices = experiment.mesh.size
    return Program(
        _memory(compiled, step.state, frozen, shapes),
        {precision: flops / devices for precision, flops in counted(traced.jaxpr.jaxpr).items()},
        traffic(compiled.as_text()),
        {"trained": _scalars(step.state.params), "frozen": _scalars(frozen)},
    )


def _memory(compiled, state, frozen, batch) -> dict[str, int]:
    """Arguments from their layouts, the rest from the compiler's assignment of buffers."""
    layouts, _ = compiled.input_shardings
    held = jax.tree.map(_bytes_per_device, (state, frozen, batch), tuple(layouts))
    stats = compiled.memory_analysis()
    return {
        "parameters": _sum(held[0].params),
        "optimiser state": _sum(held[0].opt_state),
        "moving averages": _sum(held[0].ema),
        "slots": _sum(held[0].slots),
        "frozen parameters": _sum(held[1]),
        "batch": _sum(held[2]),
        "temporaries": stats.temp_size_in_bytes,
        "outputs not in place": stats.output_size_in_bytes - stats.alias_size_in_bytes,
    }


def _bytes_per_device(x, layout) -> int:
    return math.prod(layout.shard_shape(x.shape)) * x.dtype.itemsize


def _sum(tree: Any) -> int:
    return sum(jax.tree.leaves(tree))


def _scalars(tree: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
