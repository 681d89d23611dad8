"""The search for hard negatives in a corpus, on devices, against faiss's exact index on the CPU.

    python -m smke_jax.studies.benchmarks.corpus_search [--rows=5000,50000,566747,1000000] [--queries=96] [--k=16]

Both get random rows of length 1 and take the k nearest of other images for every query: five rows belong to each image.
faiss has no mask: it is asked for five rows more, and the query's own are taken out of them.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from smke_jax.__main__ import run_program
from smke_jax.errors import UserError
from smke_jax.flags import positive
from smke_jax.losses.nearest import nearest_foreign
from smke_jax.parallel.mesh import make_mesh, put_batch, put_spread
from smke_jax.selections.base import Selection
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import in_turns, say, spread
from smke_jax.training.step import run_selection

PER_IMAGE = 5  # rows of the corpus
OURS, FAISS = "smke_jax", "faiss"


class Made(NamedTuple):
    """queries (B, D), ids (B,), rows (N, D) fp16, owners (N,)."""

    queries: np.ndarray
    ids: np.ndarray
    rows: np.ndarray
    owners: np.ndarray


def make(rows: int, queries: int, width: int) -> Made:
    """Random rows of length 1 whose images follow one another, and queries of some of these images."""
    rng = np.random.default_rng(0)

    def unit(count):
        x = rng.normal(size=(count, width)).astype(np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    owners = (np.arange(rows) // PER_IMAGE).astype(np.int32)
    ids = rng.integers(0, owners[-1] + 1, queries).astype(np.int32)
    return Made(unit(queries), ids, unit(rows).astype(np.float16), owners)


def on_devices(made: Made, k: int) -> tuple[Callable[[int], Any], int]:
    """(steps -> the numbers (B, k) that the last of them found, bytes of one device: corpus and temporary memory)."""
    mesh = make_mesh()

    def look(state, arrays, scope):
        kept = state["assets/corpus"]
        return {
            "numbers": nearest_foreign(arrays["queries"], arrays["ids"], kept["rows"], kept["id"], k, scope=scope)[1]
        }

    search = Selection("nearest", ("queries", "ids"), ("numbers",), look, reads=("assets/corpus",))
    state = {"assets/corpus": put_spread({"rows": made.rows, "id": made.owners}, mesh)}
    asked = put_batch({"queries": made.queries, "ids": made.ids}, mesh)
    run_all = jax.jit(lambda state, asked: run_selection(search, mesh, state, asked, key=jax.random.key(0))["numbers"])
    compiled = run_all.lower(state, asked).compile()
    stats = compiled.memory_analysis()

    def run(steps: int):
        for _ in range(steps):
            found = compiled(state, asked)
        return jax.device_get(found)

    return run, stats.argument_size_in_bytes + stats.temp_size_in_bytes


def in_faiss(made: Made, k: int) -> tuple[Callable[[int], Any], int]:
    """The same of IndexFlatIP, which keeps fp32."""
    import faiss

    index = faiss.IndexFlatIP(made.rows.shape[1])
    index.add(made.rows.astype(np.float32))

    def run(steps: int):
        for _ in range(steps):
            numbers = index.search(made.queries, k + PER_IMAGE)[1]
            own = made.owners[numbers] == made.ids[:, None]
            places = np.argsort(own, axis=1, kind="stable")[:, :k]  # those of other images first, in their order
            found = np.take_along_axis(numbers, places, axis=1)
        return found

    return run, made.rows.size * 4


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The share of the rows (B, k) of `a` that `b` has found for the same query."""
    return float(np.mean([np.isin(x, y).mean() for x, y in zip(a, b, strict=True)]))


def measure(rows: int, arguments: argparse.Namespace) -> str:
    """A row of the table."""
    made = make(rows, arguments.queries, arguments.width)
    known = {OURS: on_devices(made, arguments.k)}
    if importlib.util.find_spec("faiss") is not None:
        known[FAISS] = in_faiss(made, arguments.k)
    runs = {name: run for name, (run, _) in known.items()}
    same = agreement(runs[OURS](1), runs[FAISS](1)) if FAISS in runs else None
    speeds = in_turns(runs, rounds=arguments.rounds, seconds=arguments.seconds)
    milliseconds = {name: spread([1000 / x for x in values]) for name, values in speeds.items()}
    cells = [f"{rows:,}", milliseconds[OURS], f"{known[OURS][1] / 2**20:,.0f}"]
    if same is None:
        return f"| {' | '.join([*cells, 'not installed', '', '', ''])} |"
    ratios = spread([x / y for x, y in zip(speeds[OURS], speeds[FAISS], strict=True)])
    return f"| {' | '.join([*cells, milliseconds[FAISS], f'{known[FAISS][1] / 2**20:,.0f}', ratios, f'{same:.5f}'])} |"


HEAD = (
    "| rows | smke_jax, ms | MiB of a device | faiss on the CPU, ms | MiB | speed-up | same rows |\n"
    "|---|---|---|---|---|---|---|"
)
BODY = """\
{queries} queries of {width} channels, the {k} nearest rows of other images each, on {devices}. Medians of {rounds}
rounds in turns, lowest and highest in brackets. The corpus is fp16 on the devices and fp32 in faiss, whose memory is
that of its vectors.

{table}
"""


def main(argv: list[str]) -> int:
    """Measures and writes the table."""
    arguments = _parser().parse_args(argv)
    if importlib.util.find_spec("faiss") is None:
        say("faiss is not installed, so it is left out: pip install faiss-cpu")
    if (rows := min(arguments.rows)) < (least := arguments.k + PER_IMAGE):
        raise UserError(
            f"--rows={rows} with --k={arguments.k}: {PER_IMAGE} rows belong to the query's image, so that {least} are "
            f"needed: give --rows={least} or more"
        )
    lines = [HEAD]
    for rows in arguments.rows:
        say(f"{rows:,} rows")
        lines.append(measure(rows, arguments))
    table = "\n".join(lines)
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    body = BODY.format(
        queries=arguments.queries, width=arguments.width, k=arguments.k, rounds=arguments.rounds, table=table,
        devices=devices,
    )  # fmt: skip
    record.write(arguments.out, "Hard negatives from a corpus", "python -m " + __spec__.name, body)
    print(table)
    return 0


def _counts(text: str) -> list[int]:
    return [positive(x) for x in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("corpus_search", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rows", type=_counts, default=[5_000, 50_000, 566_747, 1_000_000], metavar="N,N")
    parser.add_argument("--queries", type=positive, default=96, metavar="N", help="a batch")
    parser.add_argument("--k", type=positive, default=16, metavar="N", help="negatives of a query")
    parser.add_argument("--width", type=positive, default=512, metavar="N", help="channels")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="times that both run in turns")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="that each runs in a round")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
