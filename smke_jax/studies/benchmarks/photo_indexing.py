"""How fast photos get into an index, against the model's own work on them.

    python -m smke_jax.studies.benchmarks.photo_indexing --model=EXPORT --photos=DIR [--count=256] [--tiles=14]

The same photos go in turns through three things: an index that is made from nothing, `encode_images` of the files
(decode and encode), and `encode_images` of pixels that are decoded already (encode).  The time of loading the model and
of compiling it is left out.  With --tiles the photos are put together to pictures as large as a camera's: 14 × 14 of
them, 256 pixels each, are 12.8 megapixels.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import smke_jax
from smke_jax.__main__ import run_program
from smke_jax.data.decode import decode_image
from smke_jax.data.transforms import squash
from smke_jax.embedder import Embedder
from smke_jax.errors import UserError
from smke_jax.flags import positive
from smke_jax.search.cutoff import PHRASES
from smke_jax.search.photos import Photo, photos_below
from smke_jax.search.store import About, writing
from smke_jax.search.update import update
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import in_turns, say, spread

TILE = 256  # pixels per side of a photo in a mosaic
INDEX, FILES, PIXELS = "index", "files", "pixels"


class Indexing:
    """Makes an index of `photos` anew at each call, as `smke index` does with a model that is loaded."""

    def __init__(self, model: Embedder, photos: Sequence[Path], batch_size: int, work: Path):
        """`work`: an empty folder, for links to the photos and for the indexes."""
        self.model, self.batch_size, self.work = model, batch_size, work
        self.phrases = model.encode_texts(PHRASES)
        (work / "photos").mkdir()
        for i, path in enumerate(photos):
            (work / "photos" / f"{i:06}{path.suffix}").symlink_to(path.resolve())
        self.made = 0

    def __call__(self) -> int:
        """The photos that are in the new index."""
        about = About("model", None, self.model.digest, self.phrases.shape[1], str(self.work / "photos"))
        with writing(self.work / f"index{self.made}", about) as writer:
            counts = update(writer, self.model, self.phrases, batch_size=self.batch_size)
        self.made += 1
        return counts.new


def first_photos(folder: Path, count: int) -> list[Path]:
    """The first `count` photos below a folder.  Raises UserError where there are fewer."""
    found = (folder / x.name for x in photos_below(folder) if isinstance(x, Photo))
    photos = list(itertools.islice(found, count))
    if len(photos) < count:
        raise UserError(f"{folder} holds {len(photos)} photos: give --count={len(photos)} or another --photos")
    return photos


def mosaics(photos: Sequence[Path], tiles: int, folder: Path) -> list[Path]:
    """As many JPEGs in `folder` as there are photos, each of tiles × tiles of the photos side by side."""
    small = [squash(decode_image(path.read_bytes()), TILE) for path in photos]
    folder.mkdir()
    made = []
    for number in range(len(small)):
        chosen = [small[(number + i) % len(small)] for i in range(tiles**2)]
        rows = [np.concatenate(chosen[i : i + tiles], axis=1) for i in range(0, tiles**2, tiles)]
        made.append(folder / f"{number:06}.jpg")
        Image.fromarray(np.concatenate(rows)).save(made[-1], quality=90)
    return made


def measure(
    runs: dict[str, Callable[[], object]], count: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """{name: photos/s of each round}, {name: milliseconds of the processor for a photo in each round}.

    The processor's time counts all threads, and none of other programs that run beside this one.
    """
    work: dict[str, list[float]] = {name: [] for name in runs}

    def timed(name: str) -> Callable[[int], None]:
        def run(steps: int) -> None:
            start = time.process_time()
            for _ in range(steps):
                runs[name]()
            work[name].append(1000 * (time.process_time() - start) / (steps * count))

        return run

    speeds = in_turns({name: timed(name) for name in runs}, rounds=rounds, seconds=0)
    rates = {name: [count * x for x in values] for name, values in speeds.items()}
    return rates, {name: values[1:] for name, values in work.items()}  # the first of each compiles


BODY = """\
{count} JPEGs{mosaics} of {folder}, {megapixels:.2f} megapixels each, {batch_size} at once; `--model` of type {model}.
Medians of {rounds} rounds, lowest and highest in brackets; the ratios are of the same round.

| what | photos/s | milliseconds of the processor a photo |
|---|---|---|
| the index: list, read, digest, EXIF, decode, encode, write | {index} | {index_ms} |
| decode and encode: `encode_images` of the files | {files} | {files_ms} |
| encode: `encode_images` of decoded pixels | {pixels} | {pixels_ms} |

| the index to | times as long | times the work of the processor |
|---|---|---|
| decode and encode | {of_files} | {of_files_ms} |
| encode | {of_pixels} | {of_pixels_ms} |
"""


def main(argv: list[str]) -> int:
    """Measures and writes the table."""
    arguments = _parser().parse_args(argv)
    photos = first_photos(arguments.photos, arguments.count)
    model = smke_jax.load(arguments.model)
    size = arguments.batch_size
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.tiles:
            photos = mosaics(photos, arguments.tiles, Path(temporary, "mosaics"))
        decoded = [decode_image(path.read_bytes()) for path in photos]
        runs = {
            INDEX: Indexing(model, photos, size, Path(temporary)),
            FILES: lambda: model.encode_images(photos, batch_size=size),
            PIXELS: lambda: model.encode_images(decoded, batch_size=size),
        }
        rates, work = measure(runs, len(photos), arguments.rounds)
    columns = {name: spread(values) for name, values in rates.items()}
    columns |= {f"{name}_ms": spread(values) for name, values in work.items()}
    for name in (FILES, PIXELS):
        columns[f"of_{name}"] = spread([y / x for x, y in zip(rates[INDEX], rates[name], strict=True)])
        columns[f"of_{name}_ms"] = spread([x / y for x, y in zip(work[INDEX], work[name], strict=True)])
    body = BODY.format(
        count=len(photos), mosaics=f" of {arguments.tiles}² photos" if arguments.tiles else "",
        folder=arguments.photos.name, batch_size=size, model=model.description["type"],
        megapixels=sum(x.shape[0] * x.shape[1] for x in decoded) / len(decoded) / 1e6, rounds=arguments.rounds,
        **columns,
    )  # fmt: skip
    command = (
        "python -m smke_jax.studies.benchmarks.photo_indexing --model=EXPORT --photos=DIR "
        f"--count={len(photos)} --batch_size={size} --rounds={arguments.rounds}"
    )
    command += f" --tiles={arguments.tiles}" if arguments.tiles else ""
    record.write(arguments.out, "Indexing photos", command, body)
    say(f"{arguments.out} is written: {columns[INDEX]} photos/s, {columns['of_files']} × decode and encode")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("photo_indexing", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="RUN|EXPORT", help="an image-text model")
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folder of photos")
    parser.add_argument("--count", type=positive, default=256, metavar="N", help="photos that are indexed")
    parser.add_argument("--batch_size", type=positive, default=32, metavar="N", help="photos at once")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="times that all run in turns")
    parser.add_argument("--tiles", type=positive, metavar="N", help="photos per side of a mosaic; default: none")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
