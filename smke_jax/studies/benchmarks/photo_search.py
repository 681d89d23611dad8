"""How long an index of very many photos takes to answer, to open and to bring up to date, and what memory that takes.

    python -m smke_jax.studies.benchmarks.photo_search --model=EXPORT [--photos=100000]

The photos are empty files with random embeddings of the model's width, so that only the model's own time is left out of
indexing.  Queries are those of the model.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

import smke_jax
from smke_jax.__main__ import run_program
from smke_jax.search.photos import DIGEST_BYTES, photos_below
from smke_jax.search.query import find
from smke_jax.search.scores import best
from smke_jax.search.store import About, Entry, Index, writing
from smke_jax.search.update import update
from smke_jax.search.words import keep, load
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import alone, in_turns, peak_resident_gib, resident_gib, say, spread

AT_ONCE, IN_FOLDER, TOP = 1000, 1000, 12
QUERY = "two dogs in the snow"


def make(folder: Path, about: About, count: int) -> None:
    """An index of `count` photos, 1,000 in a folder, with random unit embeddings."""
    photos, rng = Path(about.photos), np.random.default_rng(0)
    for start in range(0, count, IN_FOLDER):
        (photos / f"{start // IN_FOLDER:04}").mkdir(parents=True)
        for i in range(start, min(start + IN_FOLDER, count)):
            (photos / f"{i // IN_FOLDER:04}" / f"{i:07}.jpg").touch()
    listed = list(photos_below(photos))
    with writing(folder, about) as writer:
        for start in range(0, count, AT_ONCE):
            batch = listed[start : start + AT_ONCE]
            rows = rng.normal(size=(len(batch), about.width)).astype(np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            digests = [rng.bytes(DIGEST_BYTES) for _ in batch]
            spread = 1 / about.width**0.5
            writer.append([Entry(p, d, 0, row, 0.0, spread) for p, d, row in zip(batch, digests, rows, strict=True)])


class Embedded:
    """An embedder of nothing: all photos are unchanged."""

    def image_batches(self, images: Iterable, *, batch_size: int):
        assert not list(images)
        return iter(())


def refresh(folder: Path) -> tuple[float, float, float]:
    """(seconds, resident GiB before, the most) of an index that is brought up to date where nothing has changed."""
    about, start, before = Index(folder).about, time.perf_counter(), resident_gib()

    def run():
        with writing(folder, about) as writer:
            update(writer, Embedded(), None, batch_size=32)

    peak = peak_resident_gib(run)
    return time.perf_counter() - start, before, peak


def answer(folder: Path, vector: np.ndarray) -> tuple[float, float, float]:
    """(seconds, resident GiB before, the most) of opening the index and its first answer, in a process of its own."""
    start, before = time.perf_counter(), resident_gib()
    peak = peak_resident_gib(lambda: _find(Index(folder), vector))
    return time.perf_counter() - start, before, peak


def _find(index: Index, vector: np.ndarray):
    return find(index, vector, index.live, top=TOP, min_score=-1.0, is_text=True)


def warm(index: Index, vector: np.ndarray, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of an answer: ours from the file, and plain NumPy from memory as fp16 and as fp32."""
    half = np.array(index.rows)
    whole = half.astype(np.float32)

    def times(one: Callable[[], object]) -> Callable[[int], None]:
        def run(steps):
            for _ in range(steps):
                one()

        return run

    speeds = in_turns(
        {
            "smke_jax": times(lambda: _find(index, vector)),
            "NumPy fp16": times(lambda: best(half.astype(np.float32) @ vector, TOP)),
            "NumPy fp32": times(lambda: best(whole @ vector, TOP)),
        },
        rounds=rounds, seconds=seconds,
    )  # fmt: skip
    return {name: [1000 / x for x in values] for name, values in speeds.items()}


def cold(folder: Path, tries: int) -> list[float]:
    """Seconds of `smke search` as a whole process; the first, which compiles, is not counted."""
    command = [sys.executable, "-m", "smke_jax", "search", QUERY, f"--index={folder}", "--min_score=-1"]
    found = []
    for _ in range(tries + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append(time.perf_counter() - start)
    return found[1:]


BODY = """\
{count:,} photos of {width} numbers each, {size:.0f} MiB of rows on disk; `--model` {model}. Medians, lowest and highest
in brackets; resident memory counts the rows that are mapped from the file.

| what | time |
|---|---|
| `smke search` as a process, compiled before: Python, the model, the query, the answer | {cold} s |
| of it opening the index and the answer, without the query's embedding | {first:.2f} s |
| answer in a process that is warm | {warm} ms |
| the same with the query's embedding | {text} ms |
| plain NumPy, rows in memory as fp16 (ratio to ours) | {half} ms ({half_ratio}) |
| plain NumPy, rows in memory as fp32, twice the memory (ratio to ours) | {whole} ms ({whole_ratio}) |
| writing the index, with empty files as photos | {rate:,.0f} photos/s |
| `smke index` where nothing has changed, without the model | {refresh:.1f} s |

| memory | before | most |
|---|---|---|
| open and answer | {answer_before:.2f} GiB | {answer_peak:.2f} GiB |
| bring up to date | {refresh_before:.2f} GiB | {refresh_peak:.2f} GiB |
"""


def main(argv: list[str]) -> int:
    """Measures and writes the tables."""
    arguments = _parser().parse_args(argv)
    model = smke_jax.load(arguments.model)
    vector = model.encode_texts(QUERY)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "index")
        about = About(os.path.abspath(arguments.model), None, model.digest, len(vector), str(Path(temporary, "photos")))
        start = time.perf_counter()
        make(folder, about, arguments.photos)
        rate = arguments.photos / (time.perf_counter() - start)
        keep(folder, model.text_half(), model.digest)
        say(f"made at {rate:,.0f} photos/s")
        first, answer_before, answer_peak = alone(answer, folder, vector)
        refreshed, refresh_before, refresh_peak = alone(refresh, folder)
        say("measured memory")
        index = Index(folder)
        ms = warm(index, vector, arguments.rounds, arguments.seconds)
        words = load(folder, model.digest)
        words.encode_texts([QUERY])  # compiles
        text = _milliseconds(lambda: _find(index, words.encode_texts([QUERY])[0]), 10)
        seconds = cold(folder, arguments.tries)
        ratios = {name: spread([x / y for x, y in zip(values, ms["smke_jax"])]) for name, values in ms.items()}
        body = BODY.format(
            count=arguments.photos, width=len(vector), size=index.rows.nbytes / 2**20,
            model=f"of type {model.description['type']}", cold=spread(seconds), first=first,
            warm=spread(ms["smke_jax"]), text=spread(text), half=spread(ms["NumPy fp16"]),
            whole=spread(ms["NumPy fp32"]), half_ratio=ratios["NumPy fp16"], whole_ratio=ratios["NumPy fp32"],
            rate=rate, refresh=refreshed, answer_before=answer_before, answer_peak=answer_peak,
            refresh_before=refresh_before, refresh_peak=refresh_peak,
        )  # fmt: skip
    command = f"python -m smke_jax.studies.benchmarks.photo_search --model=EXPORT --photos={arguments.photos}"
    record.write(arguments.out, "Searching photos", command, body)
    say(f"{arguments.out} is written: {statistics.median(ms['smke_jax']):.0f} ms an answer")
    return 0


def _milliseconds(run: Callable[[], object], tries: int) -> list[float]:
    found = []
    for _ in range(tries):
        start = time.perf_counter()
        run()
        found.append(1000 * (time.perf_counter() - start))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("photo_search", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="RUN|EXPORT", help="an image-text model")
    parser.add_argument("--photos", type=int, default=100_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="times that all run in turns")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="that each runs in a round")
    parser.add_argument("--tries", type=int, default=3, metavar="N", help="of a whole process")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
