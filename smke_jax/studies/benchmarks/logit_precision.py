"""What the precision of the products of embeddings costs a contrastive loss: the error of its gradient.

    python -m smke_jax.studies.benchmarks.logit_precision [--keys 1024 32768] [--scales 14 50 100]

The gradient is that of the cross entropy of 256 queries by the queries: the softmax less the right key, times the keys.
Both of its products, the logits and this one, are computed in the same way, with sums in fp32.  The reference is
computed in fp64.  How tensor cores round is imitated by rounding what goes into a product, which every device can do.

A second table has the error of a sum over devices in bfloat16: of gradients by towers in bfloat16, and of gradients by
embeddings under config.exchange_dtype=bfloat16.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.__main__ import run_program
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import say

QUERIES = 256
CHANNELS = 768

Product = Callable[[jax.Array, jax.Array], jax.Array]  # (m, k), (k, n) -> (m, n)


def rounded(x: jax.Array, bits: int) -> jax.Array:
    """x with a mantissa of so many bits: 7 are bfloat16, 10 are TF32."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits)


def full(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def one_pass(bits: int) -> Product:
    return lambda a, b: full(rounded(a, bits), rounded(b, bits))


def three_passes(a: jax.Array, b: jax.Array) -> jax.Array:
    """A number is a bfloat16 number and a rest that is one; the product of both rests is left out."""
    a_high, b_high = rounded(a, 7), rounded(b, 7)
    a_low, b_low = rounded(a - a_high, 7), rounded(b - b_high, 7)
    return full(a_high, b_high) + (full(a_high, b_low) + full(a_low, b_high))


WAYS: dict[str, Product] = {
    "fp32": full,
    "bf16, three passes": three_passes,
    "TF32": one_pass(10),
    "bf16": one_pass(7),
}
# What is not a way to multiply, to compare with: embeddings that a tower made in bfloat16.
FROM_BF16 = "embeddings of bf16, products in fp32"
DEVICES = (2, 8, 64, 256)


def main(argv: list[str]) -> int:
    """Measures, and writes the table."""
    arguments = _parser().parse_args(argv)
    rows = []
    for keys in arguments.keys:
        for scale in arguments.scales:
            found = errors(keys, scale)
            cells = (f"{keys:,}", f"{scale:g}", *(f"{found[name]:.1e}" for name in (*WAYS, FROM_BF16)))
            rows.append(f"| {' | '.join(cells)} |")
            say(rows[-1])
    sums = [(devices, *sum_errors(devices)) for devices in DEVICES]
    names = (*WAYS, FROM_BF16)
    body = "\n".join(
        (
            f"‖gradient - reference‖ / ‖reference‖ by {QUERIES} queries of {CHANNELS} channels.  Pairs are random,",
            "but a query and its key have the cosine that gives this key about half of the softmax: a loss near 0.7.",
            "",
            f"| keys | scale | {' | '.join(names)} |",
            f"|---|---|{'---|' * len(names)}",
            *rows,
            "",
            "‖sum - reference‖ / ‖reference‖ of sums over devices, of random shares.  In turn: a sum",
            "travels from device to device and is rounded on each.  In pairs: sums of two, then of two such sums.",
            "",
            "| devices | bf16, in turn | bf16, in pairs |",
            "|---|---|---|",
            *(f"| {devices} | {in_turn:.1e} | {in_pairs:.1e} |" for devices, in_turn, in_pairs in sums),
        )
    )
    command = " ".join(["python -m smke_jax.studies.benchmarks.logit_precision", *argv])
    record.write(arguments.out, "Precision of the products of embeddings", command, body)
    say(f"{arguments.out} is written")
    return 0


def errors(keys: int, scale: float, *, queries: int = QUERIES, seed: int = 0) -> dict[str, float]:
    """{entry of WAYS, and FROM_BF16: relative error of the gradient by the queries}."""
    a, b = _embeddings(keys, min(queries, keys), scale, seed)
    reference = gradient(a.astype(np.float64), b.astype(np.float64), scale, np)

    def error(found) -> float:
        return float(np.linalg.norm(np.asarray(found, np.float64) - reference) / np.linalg.norm(reference))

    a, b = jnp.asarray(a), jnp.asarray(b)
    made = {name: error(gradient(a, b, scale, jnp, way)) for name, way in WAYS.items()}
    return made | {FROM_BF16: error(gradient(rounded(a, 7), rounded(b, 7), scale, jnp, full))}


def gradient(a, b, scale: float, xp, product: Product = np.matmul):
    """Of the summed cross entropy of queries a (m, D) over keys b (n, D), by a; key i belongs to query i -> (m, D).

    `xp` is numpy or jax.numpy, and computes in the dtype of a and b.
    """
    logits = scale * product(a, b.T)
    weights = xp.exp(logits - logits.max(axis=1, keepdims=True))
    weights = weights / weights.sum(axis=1, keepdims=True)
    return scale * product(weights - xp.eye(*weights.shape, dtype=a.dtype), b)


def sum_errors(devices: int, *, numbers: int = 2**14, seed: int = 0) -> tuple[float, float]:
    """Relative errors of sums over a power of two of devices, every one rounded to bfloat16: (in turn, in pairs)."""
    shares = np.random.default_rng(seed).normal(size=(devices, numbers)).astype(np.float32)
    reference = shares.astype(np.float64).sum(axis=0)
    pairs = rounded(jnp.asarray(shares), 7)
    total = pairs[0]
    for share in pairs[1:]:
        total = rounded(total + share, 7)
    while len(pairs) > 1:
        pairs = rounded(pairs[::2] + pairs[1::2], 7)
    wrong = (np.linalg.norm(np.asarray(found, np.float64) - reference) for found in (total, pairs[0]))
    in_turn, in_pairs = (float(error / np.linalg.norm(reference)) for error in wrong)
    return in_turn, in_pairs


def _embeddings(keys: int, queries: int, scale: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    # The cosine of two random directions has the variance 1 / CHANNELS, and the log-sum-exp of all logits follows.
    cosine = np.float32((np.log(keys) + scale**2 / CHANNELS / 2) / scale)
    rng = np.random.default_rng(seed)
    b = rng.normal(size=(keys, CHANNELS)).astype(np.float32)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    noise = rng.normal(size=(queries, CHANNELS)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    a = cosine * b[:queries] + np.sqrt(1 - cosine**2) * noise
    return a / np.linalg.norm(a, axis=1, keepdims=True), b


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("logit_precision", description=__doc__.splitlines()[0], allow_abbrev=False)
    numbers = {"nargs": "+", "metavar": "N"}
    parser.add_argument("--keys", type=int, default=[1024, 32_768], help="of all devices", **numbers)
    parser.add_argument("--scales", type=float, default=[14, 50, 100], help="inverse temperatures", **numbers)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
