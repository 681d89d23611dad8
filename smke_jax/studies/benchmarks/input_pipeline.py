"""Examples that the input pipeline makes per second, against PyTorch's DataLoader; and how long training waits for it.

    python -m smke_jax.studies.benchmarks.input_pipeline --data=data/flickr8k [--image_size=128] [--config=FILE]

Both read the same photos, ours from the prepared dataset, PyTorch one file each.  They decode, crop at random, resize
to `image_size`, mirror, draw a caption and tokenise it: uint8 views and ids in batches.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from smke_jax.__main__ import run_program
from smke_jax.config_files import load_config
from smke_jax.data.decode import decode_image
from smke_jax.data.pipeline import train_batches
from smke_jax.data.sources import PreparedSource, open_prepared
from smke_jax.data.tokenizer import train_wordpiece
from smke_jax.data.transforms import StudentTeacherViews, View
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import require_torch, say, spread
from smke_jax.training.loop import train_and_evaluate

BATCH, MAX_LENGTH, VOCAB_SIZE, CROP_SCALE, CROP_RATIO = 64, 20, 4000, (0.35, 1.0), (3 / 4, 4 / 3)
WORKERS = (0, 1, 2)


def speed(make: Callable[[], Iterator], seconds: float) -> tuple[float, float]:
    """Examples per second, by the clock and by processor time, of the batches that `make` starts to make.

    The clock starts with the first batch, when threads and processes run; processor time is of all of them.
    """
    before, batches = os.times(), make()
    next(batches)
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        next(batches)
        count += BATCH
    getattr(batches, "close", lambda: None)()
    del batches  # PyTorch's processes end here, and only then does their time count
    used = sum(os.times()[:4]) - sum(before[:4])
    return count / elapsed, (BATCH + count) / used


def makers(source: PreparedSource, folder: Path, size: int) -> dict[tuple[str, int], Callable[[], Iterator]]:
    """{(whose, number of threads or processes): what starts its batches}; PyTorch's photos are written to `folder`."""
    from smke_jax.studies.benchmarks.pytorch_data import Collate, Photos, loader

    paths, captions = [], []
    for i in range(len(source)):
        example = source[i]
        paths.append(folder / f"{i}{Path(example.name).suffix}")
        paths[-1].write_bytes(example.image)
        captions.append(example.captions)
    tokenizer = train_wordpiece((caption for texts in captions for caption in texts), VOCAB_SIZE)
    view = View(size, CROP_SCALE, CROP_RATIO)
    views = StudentTeacherViews(view)
    photos, collate = Photos(paths, captions, size, CROP_SCALE, CROP_RATIO), Collate(tokenizer, MAX_LENGTH)

    def ours(threads):
        return train_batches(
            source, views, batch_size=BATCH, seed=0, unit="images", tokenizer=tokenizer, max_length=MAX_LENGTH,
            threads=threads,
        )  # fmt: skip

    found = {}
    for count in WORKERS:
        found["smke_jax", count] = lambda count=count: ours(count)
        found["PyTorch", count] = lambda count=count: iter(loader(photos, collate, BATCH, count))
    return found


def compare(source: PreparedSource, size: int, *, rounds: int, seconds: float) -> list[str]:
    """The rows of the first table."""
    with tempfile.TemporaryDirectory() as folder:
        makes = makers(source, Path(folder), size)
        measured = {key: [] for key in makes}
        for i in range(rounds):
            for key, make in makes.items():
                measured[key].append(speed(make, seconds))
            say(f"  round {i + 1} of {rounds}")
    rows = []
    for count in WORKERS:
        ours, theirs = (zip(*measured[who, count], strict=True) for who in ("smke_jax", "PyTorch"))
        for unit, a, b in zip(("second", "CPU second"), ours, theirs, strict=True):
            ratio = spread([x / y for x, y in zip(a, b, strict=True)])
            rows.append(f"| {count} | examples per {unit} | {spread(a)} | {spread(b)} | {ratio} |")
    return rows


def data_wait(location: str, data: str, steps: int, *, in_memory: bool) -> str:
    """A row of the second table: `steps` steps of the config at `location`, on the photos in `data`."""
    config = load_config(location)
    config.update(total_steps=steps, epochs=0.0)
    config.task.update(data=(data,), in_memory=in_memory)
    for name in list(config.evaluators):
        del config.evaluators[name]
    config.checkpoint.every, config.log.every = 0, max(1, steps // 8)
    with tempfile.TemporaryDirectory() as workdir:
        train_and_evaluate(config, workdir)
        lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "data_wait" in line]
    speeds, waits = ([line[key] for line in lines] for key in ("examples_per_second", "data_wait"))
    how = "decoded once, in memory" if in_memory else "decoded each time"
    share = f"{100 * statistics.median(waits):.2f} % ({100 * max(waits):.2f} %)"
    return f"| {how} | {config.batch_size} | {steps} | {spread(speeds)} | {share} |"


BODY = """\
{dataset}: {count:,} photos, the first {width} × {height} pixels; views of {size} × {size}, crops of {low:.0%} to
{high:.0%} of the area, batches of {batch}. Medians of {rounds} rounds of {seconds:g} s in turns, lowest and highest in
brackets. Workers are threads in smke_jax (`config.task.threads`, 2 by default) and processes in PyTorch; with 0 the
caller makes its batches itself.

| workers | measure | smke_jax | PyTorch | ratio |
|---|---|---|---|---|
{rows}
"""
WAIT = """
Share of the time that training waits for its next batch, `{config}`:

| photos | batch | steps | examples/s | waiting, median (highest) |
|---|---|---|---|---|
{rows}
"""


def main(argv: list[str]) -> int:
    """Measures and writes the tables."""
    arguments = _parser().parse_args(argv)
    require_torch()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # so that no threads work but those that are counted
    source, size = open_prepared(arguments.data, arguments.split), arguments.image_size
    height, width, _ = decode_image(source[0].image).shape
    rows = compare(source, size, rounds=arguments.rounds, seconds=arguments.seconds)
    body = BODY.format(
        dataset=f"{source.dataset}, {source.split}", count=len(source), width=width, height=height, size=size,
        low=CROP_SCALE[0], high=CROP_SCALE[1], batch=BATCH, rounds=arguments.rounds, seconds=arguments.seconds,
        rows="\n".join(rows),
    )  # fmt: skip
    if arguments.steps:
        rows = [data_wait(arguments.config, arguments.data, arguments.steps, in_memory=x) for x in (True, False)]
        body += WAIT.format(config=arguments.config, rows="\n".join(rows))
    command = " ".join(["python -m smke_jax.studies.benchmarks.input_pipeline", *argv])
    record.write(arguments.out, "The input pipeline against PyTorch's DataLoader", command, body)
    say(f"{arguments.out} is written")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("input_pipeline", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder written by `smke prepare`")
    parser.add_argument("--split", default="train")
    parser.add_argument("--image_size", type=int, default=128, metavar="N", help="pixels of the views")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="times that all run in turns")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="that each runs in a round")
    parser.add_argument("--config", default="configs/flickr8k.py:itc", help="trained to see how long it waits")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="of that training; 0 leaves it out")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
