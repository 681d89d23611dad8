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
    """Parses the flags, measures, prints the tables and writes them beside this file."""
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
    rows = [_measure(batch, n, arguments) for batch in arguments.batch for n in counts]
    body = "\n".join(
        (
            f"Symmetric InfoNCE of {arguments.width} channels, fp32: temporary MiB per device of loss and gradients,",
            "and seconds where measured (median of 3).",
            "",
            "| batch | devices | " + " | ".join(f"{form} MiB" for form in FORMS) + " | "
            + " | ".join(f"{form} s" for form in FORMS) + " |",
            "|" + "---|" * (2 + 2 * len(FORMS)),
            *rows,
        )
    )  # fmt: skip
    print(body)
    command = " ".join(["python -m smke_jax.studies.benchmarks.contrastive", *argv])
    print(f"written to {record.write(arguments.out, 'Contrastive loss over devices', command, body)}")
    return 0


def _measure(batch: int, devices: int, arguments) -> str:
    memory, seconds = [], []
    for form in FORMS:
        compiled = compiled_loss(form, batch, devices, arguments.width)
        memory.append(f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:,.0f}")
        timed = batch * batch <= arguments.timed_logits
        seconds.append(f"{_seconds(compiled, batch, devices, arguments.width):.3f}" if timed else "")
        print(f"{form}, batch {batch}, {devices} devices: {memory[-1]} MiB  {seconds[-1]}", file=sys.stderr)
    return f"| {batch:,} | {devices} | {' | '.join(memory)} | {' | '.join(seconds)} |"


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
