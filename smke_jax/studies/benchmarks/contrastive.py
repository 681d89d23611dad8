"""The contrastive loss over all devices: memory and time of gather, ring and the form that writes out all logits.

    python -m smke_jax.studies.benchmarks.contrastive

Where there are fewer than eight devices they are simulated.  Memory is what the compiled program of loss and gradients
asks for besides its arguments and results, per device.  Time is measured where the whole matrix of logits has at most
`--timed_logits` entries.  Simulated devices share one processor, so only figures of one device count, or of real
devices, say how fast a form is.
"""

import argparse
import functools
import os
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from smke_jax.__main__ import run_program
from smke_jax.losses.collective import Scope, mean
from smke_jax.losses.contrastive import symmetric_info_nce
from smke_jax.parallel.mesh import DATA_AXES, make_mesh, replicated, sharded
from smke_jax.studies.benchmarks import record

FORMS = ("gather", "ring", "naive")
RESULT = Path(__file__).with_suffix(".md")


def main(argv: list[str]) -> int:
    """Parses the flags, measures, prints the table; it is written after each form."""
    parser = argparse.ArgumentParser(prog="python -m smke_jax.studies.benchmarks.contrastive", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[2**k for k in range(12, 18)])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--timed_logits", type=int, default=2**26, help="a GPU can do 2**32")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args(argv)
    if not os.environ.get("JAX_NUM_CPU_DEVICES") and "host_platform_device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        jax.config.update("jax_num_cpu_devices", max(arguments.devices))
    counts = [n for n in arguments.devices if n <= len(jax.devices())]
    command = " ".join(["python -m smke_jax.studies.benchmarks.contrastive", *argv])
    found: dict[tuple[int, int], dict[str, tuple[str, str]]] = {}
    for batch in arguments.batch:
        for devices in counts:
            for form in FORMS:
                found.setdefault((batch, devices), {})[form] = _measure(form, batch, devices, arguments)
                record.write(arguments.out, "Contrastive loss over devices", command, _table(found, arguments.width))
    print(f"{_table(found, arguments.width)}\nwritten to {arguments.out}")
    return 0


def _table(found, width: int) -> str:
    columns = [f"{form} {unit}" for unit in ("MiB", "s") for form in FORMS]
    rows = []
    for (batch, devices), forms in found.items():
        cells = [forms.get(form, ("", ""))[i] for i in range(2) for form in FORMS]
        rows.append(f"| {batch:,} | {devices} | {' | '.join(cells)} |")
    return "\n".join(
        (
            f"Symmetric InfoNCE of {width} channels, fp32: temporary MiB per device of loss and gradients,",
            "and seconds where measured (median of 3).",
            "",
            f"| batch | devices | {' | '.join(columns)} |",
            "|" + "---|" * (2 + len(columns)),
            *rows,
        )
    )


def _measure(form: str, batch: int, devices: int, arguments) -> tuple[str, str]:
    """(MiB, seconds or '') of one form."""
    compiled = compiled_loss(form, batch, devices, arguments.width)
    memory = f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:,.0f}"
    timed = batch * batch <= arguments.timed_logits
    seconds = _timed(compiled, batch, devices, arguments.width) if timed else ""
    print(f"{form}, batch {batch}, {devices} devices: {memory} MiB  {seconds}", file=sys.stderr)
    return memory, seconds


def compiled_loss(form: str, batch: int, devices: int, width: int):
    """Loss and gradients of (images, texts, scale), compiled for `devices`; nothing is allocated."""
    mesh = make_mesh(devices)
    loss = naive_loss if form == "naive" else functools.partial(spread_loss, mesh, form)
    rows, whole = sharded(mesh), replicated(mesh)
    embeddings = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=rows)
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), out_shardings=(whole, (rows, rows, whole)))
    return run.lower(embeddings, embeddings, scale).compile()


def naive_loss(images, texts, scale):
    """The loss as it is written for one device; the compiler spreads it."""
    logits = scale * jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
    own = jnp.diagonal(logits)
    return jnp.mean(jax.nn.logsumexp(logits, axis=0) + jax.nn.logsumexp(logits, axis=1) - 2 * own) / 2


def spread_loss(mesh, impl, images, texts, scale):
    """The same by `symmetric_info_nce`."""
    scope = Scope(DATA_AXES, impl)
    rows, whole = sharded(mesh).spec, replicated(mesh).spec
    local = lambda a, b, s: mean(symmetric_info_nce(a, b, s, scope=scope)[0], scope)  # noqa: E731
    return jax.shard_map(local, mesh=mesh, in_specs=(rows, rows, whole), out_specs=whole)(images, texts, scale)


def _timed(compiled, batch, devices, width) -> str:
    try:
        return f"{_seconds(compiled, batch, devices, width):.3g}"
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return "out of memory"


def _seconds(compiled, batch, devices, width) -> float:
    mesh = make_mesh(devices)
    keys = jax.random.split(jax.random.key(0))
    rows = jax.jit(lambda k: jax.random.normal(k, (batch, width)) / width**0.5, out_shardings=sharded(mesh))
    arguments = rows(keys[0]), rows(keys[1]), jax.device_put(jnp.float32(14.0), replicated(mesh))
    times = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
