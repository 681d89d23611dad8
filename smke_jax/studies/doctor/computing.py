"""Whether the devices compute the right numbers: a sum over all of them, and a tiny training."""

import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.networks.base import Network
from smke_jax.objectives.itc import itc
from smke_jax.parallel.mesh import make_mesh, put_batch, replicated
from smke_jax.passes.base import Pass
from smke_jax.studies.doctor.findings import Finding, judged
from smke_jax.training.optimizer import build_optimizer
from smke_jax.training.recipe import make_recipe
from smke_jax.training.step import init_state, make_train_step

DTYPES = ("float32", "bfloat16")
ROWS, INPUTS, HIDDEN, WIDTH = 16, {"image": 12, "text": 10}, 24, 8
# Of the optimiser.  `eps` is large, or Adam would turn the rounding of a gradient near 0 into a whole update.
OPTIMIZER = {"learning_rate": 0.02, "warmup_fraction": 0.0, "weight_decay": 0.01, "betas": (0.9, 0.98), "eps": 1e-3}
STEPS = 4
# The losses of these steps, from PyTorch in 64 bits: tests/studies/doctor/test_computing.py computes them again.
LOSSES = (6.1193319887, 3.1657558468, 2.1570733291, 1.7313532071)
# Of the largest relative difference.  Matrix products of float32 run as TF32 on GPUs and as bfloat16 on TPUs.
TOLERANCE = {
    ("float32", "cpu"): 1e-5, ("float32", "gpu"): 4e-3, ("float32", "tpu"): 2e-2,
    ("bfloat16", "cpu"): 2e-2, ("bfloat16", "gpu"): 2e-2, ("bfloat16", "tpu"): 2e-2,
}  # fmt: skip


def check_computing() -> Iterator[Finding]:
    """Both checks.  A device that fails in them is a finding, too, and the last one."""
    try:
        yield check_collective()
        yield from check_training()
    except jax.errors.JaxRuntimeError as error:
        why = str(error).strip().partition("\n")[0]
        yield Finding("computing", False, f"a device fails ({why}): end what else runs on it, or leave it out by "
                                          "CUDA_VISIBLE_DEVICES")  # fmt: skip


def check_collective() -> Finding:
    """A sum over all devices, of numbers that every device can only get from the others."""
    count, start = jax.device_count(), time.perf_counter()
    mesh = make_mesh()
    rows = put_batch({"x": np.arange(1, count + 1, dtype=np.int32)[:, None] * np.ones(1024, np.int32)}, mesh)["x"]
    total = jax.jit(lambda x: x.sum(0), out_shardings=replicated(mesh))(rows)
    found = [np.asarray(shard.data) for shard in total.addressable_shards]
    right, seconds = count * (count + 1) // 2, time.perf_counter() - start
    said = f"a sum over {count} {'device' if count == 1 else 'devices'}, {seconds:.1f} s with compilation"
    wrong = [
        f"device {number} has {x[0]} for the sum {right} over {count} devices: look at its links (NCCL_DEBUG=INFO "
        "says more), or leave it out by CUDA_VISIBLE_DEVICES"
        for number, x in enumerate(found) if (x != right).any()
    ]  # fmt: skip
    return judged("collective", said, wrong)


def check_training() -> list[Finding]:
    """A tiny training in float32 and in bfloat16 against the stored losses."""
    start, devices = time.perf_counter(), device_count()
    found, platform = losses(devices), jax.devices()[0].platform
    seconds = time.perf_counter() - start
    findings = []
    for dtype, values in found.items():
        error = np.max(np.abs(np.array(values) / LOSSES - 1))
        allowed, wrong = TOLERANCE[dtype, platform], []
        if not error <= allowed:  # NaN is not
            wrong = [
                f"the losses are {_listed(values)}, the right ones {_listed(LOSSES)}: do not train here; unset "
                "XLA_FLAGS, or install another release of jax within the bounds of setup.cfg"
            ]
        said = f"{STEPS} steps on {devices} of {jax.device_count()} devices"
        said += f", losses within {error:.1g} of the right ones (allowed {allowed:g})"
        findings.append(judged(f"step {dtype}", said, wrong))
    findings[0] = findings[0]._replace(said=f"{findings[0].said}, {seconds:.1f} s with compilation")
    return findings


def _listed(values) -> str:
    return ", ".join(f"{x:.5g}" for x in values)


def device_count() -> int:
    """The most devices over which the ROWS divide."""
    return next(n for n in range(min(ROWS, jax.device_count()), 0, -1) if ROWS % n == 0)


def waves(*shape: int, phase: float) -> np.ndarray:
    """Numbers between -1 and 1 that look random and are the same everywhere: sines of squares, not a generator's."""
    return np.sin(1.7 * np.arange(1, np.prod(shape) + 1) ** 2 + phase).reshape(shape).astype(np.float32)


def parameters() -> dict[str, dict[str, np.ndarray]]:
    """{tower: {'in', 'out'}} with which the tiny training begins."""
    return {
        name: {"in": waves(size, HIDDEN, phase=size) / size**0.5, "out": waves(HIDDEN, WIDTH, phase=1) / HIDDEN**0.5}
        for name, size in INPUTS.items()
    }


def batch() -> dict[str, np.ndarray]:
    """The one batch of the tiny training; every row is an image of its own."""
    arrays = {name: waves(ROWS, size, phase=2 * size) for name, size in INPUTS.items()}
    return {**arrays, "id": np.arange(ROWS, dtype=np.int32)}


def losses(devices: int) -> dict[str, list[float]]:
    """{dtype: losses of the tiny training}: two perceptrons of two layers, contrasted, by AdamW.

    Both trainings are one program, which compiles in half the time of two.
    """

    def towers(dtype):
        def tower(side):
            def run(params, arrays, key, train):
                own, x = params[dtype][side], arrays[side].astype(dtype)
                hidden = jax.nn.gelu(x @ own["in"].astype(dtype), approximate=True)
                return {f"{dtype} {side}/out": (hidden @ own["out"].astype(dtype)).astype(jnp.float32)}

            return Pass(f"{dtype} {side}", (dtype,), (side,), (f"{dtype} {side}/out",), run)

        return [tower(side) for side in INPUTS]

    network = Network(lambda key, specs: jax.tree.map(jnp.asarray, parameters()), None)
    terms = {dtype: itc(levels=("out",), pair=(f"{dtype} image", f"{dtype} text")) for dtype in DTYPES}
    recipe = make_recipe(
        dict.fromkeys(DTYPES, network), [p for dtype in DTYPES for p in towers(dtype)], terms,
        dict.fromkeys(DTYPES, lambda progress: 1.0), batch=batch(),
    )  # fmt: skip
    mesh = make_mesh(devices)
    tx, _ = build_optimizer(batch_size=ROWS, total_steps=STEPS, **OPTIMIZER)
    state = init_state(recipe, tx, mesh, batch(), seed=0)
    step, found = make_train_step(recipe, tx, mesh, total_steps=STEPS), []
    for _ in range(STEPS):
        state, metrics = step(state, {}, put_batch(batch(), mesh))
        found.append({dtype: metrics[f"{dtype}/loss"] for dtype in DTYPES})
    return {dtype: [float(x[dtype]) for x in jax.device_get(found)] for dtype in DTYPES}
