"""`smke index`: the work behind smke_jax/flags/index.py, which says what it does."""

import collections
import sys
import time
from pathlib import Path

import jax
import numpy as np

import smke_jax
from smke_jax.__main__ import run_program
from smke_jax.embedder import Embedder
from smke_jax.errors import UserError
from smke_jax.flags.index import parser
from smke_jax.search.cutoff import PHRASES
from smke_jax.search.store import About, writing
from smke_jax.search.update import SKIPPED, Counts, update
from smke_jax.search.words import keep


def main(argv: list[str]) -> int:
    """Parses the command line, writes or updates the index and says what became of the photos."""
    arguments = parser().parse_args(argv)
    photos = arguments.photos.expanduser().resolve()
    if not photos.is_dir():
        raise UserError(f"{photos} is no folder: give --photos a folder of photos")
    start = time.monotonic()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # of `smke search`, which waits for it
    model = smke_jax.load(arguments.model, step=arguments.step)
    phrases, width = _phrases_and_width(model)
    path = str(Path(arguments.model).resolve()) if Path(arguments.model).exists() else arguments.model
    about = About(path, arguments.step, model.digest, width, str(photos))
    with writing(arguments.out, about) as writer:
        if writer.num_mended:
            print(f"{writer.num_mended} damaged entries left out: their photos are embedded again", file=sys.stderr)
        if model.reads_texts:
            keep(arguments.out, model.text_half(), model.digest)
        counts = update(writer, model, phrases, batch_size=arguments.batch_size)
    print("\n".join(_summary(counts, arguments.out, time.monotonic() - start)))
    return 0


def _phrases_and_width(model: Embedder) -> tuple[np.ndarray | None, int]:
    """Embeddings of PHRASES, where the model reads texts, and the length of an embedding."""
    model.image_batches(())  # refuses a model without images
    if not model.reads_texts:
        return None, len(model.encode_images(np.zeros((8, 8, 3), np.uint8)))
    phrases = model.encode_texts(PHRASES)
    return phrases, phrases.shape[1]


def _summary(counts: Counts, out: Path, seconds: float) -> list[str]:
    left = [x for x in counts.left if not x.is_folder]
    closed = [x for x in counts.left if x.is_folder]
    lines = [
        f"{counts.found} photos found: {counts.unchanged} unchanged, {counts.moved} moved or copied, {counts.new} new, "
        f"{counts.changed} changed, {len(left)} skipped",
        f"{counts.deleted} are no more where they were and left the index",
    ]
    if counts.cleared:
        lines.append(f"the index was written anew without the entries of {counts.cleared} photos that are gone")
    if closed:
        lines.append(f"{len(closed)} folders cannot be read; {counts.kept} photos below them stay in the index")
    reasons = collections.Counter(x.reason for x in counts.left)
    first = {x.reason: x.name for x in reversed(counts.left)}
    lines += [f"  {count} × {reason} (first: {ascii(first[reason])})" for reason, count in reasons.most_common(10)]
    if counts.left:
        lines.append(f"all of them stand in {out / SKIPPED}")
    embedded = counts.new + counts.changed
    rate = f", {embedded / seconds:.1f} embedded photos/s with loading the model" if embedded else ""
    return [*lines, f"wrote {out} in {seconds:.0f} s{rate}"]


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
