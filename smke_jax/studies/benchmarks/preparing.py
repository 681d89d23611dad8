"""How many photos `smke prepare` checks in a second, by the number of its worker processes.

    python -m smke_jax.studies.benchmarks.preparing --photos=DIR [--count=6000] [--size=640x480] [--max_side=144]

The photos are put into tar files as img2dataset writes them.  The same tars are prepared with each number of workers in
turns, each time by a process of its own.  The time is that of `build`, the start of the workers included, without the
imports of the program.  The last table says from the processor's time what a set as large as CC12M would take.
"""

import argparse
import io
import json
import math
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from smke_jax.__main__ import run_program
from smke_jax.data.decode import open_image
from smke_jax.errors import UserError
from smke_jax.flags import positive
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import say, spread
from smke_jax.studies.benchmarks.photo_indexing import first_photos

SAMPLES = 1000  # of a tar
CC12M = 7_700_000  # photos: 62 % of 12,423,374 addresses (configs/sources.md)
CORES = (1, 2, 16, 64)

# Worker processes import the program that started them: this one has no file that would bring JAX along.  They start at
# the first photo, as the few photos before would count much in a set as small as this one.
PREPARE = """
import json, resource, sys, time
from pathlib import Path
from smke_jax.data.prepare import workers
from smke_jax.data.prepare.build import build
from smke_jax.data.prepare.cc import cc
from smke_jax.data.prepare.items import Options, Skips
source, out, max_side, count = sys.argv[1:]
workers.FIRST, skips = 0, Skips()
begun, own = time.perf_counter(), time.process_time()
made = build(cc(Path(source), Options(), skips), Path(out), dataset="x", skips=skips,
             max_side=int(max_side) or None, workers=int(count))
took, own = time.perf_counter() - begun, time.process_time() - own
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([made["n_kept"], took, own, children.ru_utime + children.ru_stime]))
"""


def write_tars(photos: Sequence[Path], size: tuple[int, int] | None, folder: Path) -> float:
    """Puts the photos into tars of `folder`, each with its .txt and .json; returns the mean bytes of a photo.

    size: (width, height) in pixels to which each is scaled first, as JPEG of quality 90; None keeps the files.
    """
    total = 0
    for start in range(0, len(photos), SAMPLES):
        with tarfile.open(folder / f"{start // SAMPLES:05}.tar", "w") as tar:
            for number, path in enumerate(photos[start : start + SAMPLES], start):
                data = path.read_bytes() if size is None else _scaled(path, size)
                key = f"{number:09}"
                about = {"caption": "A photo .", "key": key, "status": "success", "url": f"https://example.org/{key}"}
                for ending, content in (("jpg", data), ("txt", b"A photo ."), ("json", json.dumps(about).encode())):
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                total += len(data)
    return total / len(photos)


def _scaled(path: Path, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    open_image(path.read_bytes()).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def prepare(tars: Path, max_side: int, workers: int) -> tuple[float, float, float]:
    """(photos/s, milliseconds a photo of the processor in the process that writes, the same in the workers)."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-c", PREPARE, tars, Path(temporary, "out"), max_side, workers]
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
    kept, took, own, children = json.loads(done.stdout)
    return kept / took, 1000 * own / kept, 1000 * children / kept


def hours(photos: int, cores: int, own: float, children: float, alone: float) -> tuple[float, float]:
    """(photos/s, hours for so many photos) on `cores` by the milliseconds of the processor that a photo takes.

    own, children: in the process that writes and in the workers, where there are workers
    alone: in one process that does everything

    One core does everything alone.  More share the work, but the process that writes is one, and has one core at most.
    """
    rate = 1000 / alone if cores == 1 else min(1000 / own, 1000 * cores / (own + children))
    return rate, photos / rate / 3600


BODY = """\
{count} photos of {folder}, {about}, {kilobytes:.1f} kB each, in tars of {samples} samples; `max_side`: {max_side}.
Medians of {rounds} rounds in turns, lowest and highest in brackets; ratios are of the same round.

| workers | photos/s | ratio to 1 | ms of the processor a photo: reading and writing | in the workers |
|---|---|---|---|---|
{rows}

With workers, one process reads the tars and writes the records; with 1, that process does everything. Predicted from
the milliseconds, for the {photos:,} photos that were left of CC12M, were they as these are:

| cores | photos/s | hours | bound by |
|---|---|---|---|
{predicted}
"""


def main(argv: list[str]) -> int:
    """Measures and writes the table."""
    arguments = _parser().parse_args(argv)
    photos = first_photos(arguments.photos, arguments.count)
    counts = (1, arguments.workers)
    found: dict[int, list[tuple[float, float, float]]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as temporary:
        mean = write_tars(photos, arguments.size, Path(temporary))
        for number in range(arguments.rounds):
            for count in counts:
                found[count].append(prepare(Path(temporary), arguments.max_side, count))
            say(f"  round {number + 1} of {arguments.rounds}")
    rows = []
    for count in counts:
        rates, own, children = zip(*found[count], strict=True)
        ratio = spread([x / first[0] for x, first in zip(rates, found[1], strict=True)])
        rows.append(f"| {count} | {spread(rates)} | {ratio} | {spread(own)} | {spread(children)} |")
    alone = _medians(found[1])[1]
    _, own, children = _medians(found[arguments.workers])
    predicted = []
    for cores in CORES:
        rate, took = hours(CC12M, cores, own, children, alone)
        bound = "reading and writing" if cores > 1 and math.isclose(rate, 1000 / own) else "all work"
        predicted.append(f"| {cores} | {rate:,.0f} | {took:.1f} | {bound} |")
    scaled = "the files as they are" if arguments.size is None else "scaled to {} × {} pixels".format(*arguments.size)
    body = BODY.format(
        count=len(photos), folder=arguments.photos.name, about=scaled, kilobytes=mean / 1000, samples=SAMPLES,
        max_side=arguments.max_side or "none", rounds=arguments.rounds, rows="\n".join(rows), photos=CC12M,
        predicted="\n".join(predicted),
    )  # fmt: skip
    command = f"python -m smke_jax.studies.benchmarks.preparing --photos=DIR --count={len(photos)}"
    command += "" if arguments.size is None else " --size={}x{}".format(*arguments.size)
    command += f" --max_side={arguments.max_side}" if arguments.max_side else ""
    command += f" --workers={arguments.workers} --rounds={arguments.rounds}"
    record.write(arguments.out, "Preparing a data set", command, body)
    say(f"{arguments.out} is written")
    return 0


def _medians(runs: list[tuple[float, float, float]]) -> tuple[float, ...]:
    return tuple(sorted(values)[len(values) // 2] for values in zip(*runs, strict=True))


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise UserError(f"--size={text} is no size: give one such as 640x480")
    return int(match[1]), int(match[2])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("preparing", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folder of photos")
    parser.add_argument("--count", type=positive, default=6000, metavar="N", help="photos that are prepared")
    parser.add_argument("--size", type=_size, metavar="WxH", help="pixels to which photos are scaled before")
    parser.add_argument("--max_side", type=positive, default=0, metavar="N", help="as of smke prepare; default: none")
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="besides 1")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="times that all run in turns")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
