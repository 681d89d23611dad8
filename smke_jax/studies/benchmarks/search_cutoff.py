"""How often the default cut-off of `smke search` is right: for captions of photos that are there or are not there.

    python -m smke_jax.studies.benchmarks.search_cutoff --model=EXPORT --data=data/flickr8k [--sentences=FILE]

A caption of every photo is searched among all photos, where its photo is one of the answers, and among the UNLIKE of
the photos whose captions are least like it, where most captions have no answer.  Sentences, such as an encyclopedia's,
mostly have no answer either.  Nobody looked at the photos: a caption may fit another photo, which then counts as a
mistake.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import smke_jax
from smke_jax.__main__ import run_program
from smke_jax.data.sources import open_prepared
from smke_jax.errors import UserError
from smke_jax.search.cutoff import ABOVE_CHANCE, PHRASES, by_chance, fits, usual_scores
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import say

UNLIKE, CHARACTERS = 0.6, 90
MARGINS, SIZES, DRAWS = (0.4, 0.8, 1.2), (25, 100, 400), 10


def fits_of(photos: np.ndarray, queries: np.ndarray, phrases: np.ndarray) -> np.ndarray:
    """`cutoff.fits` (Q, N) of every query with every photo."""
    usual = usual_scores(photos, phrases)
    return np.stack([fits(scores, *usual) for scores in queries @ photos.T])


def rates(fit: np.ndarray, like: np.ndarray, others: np.ndarray | None, margin: float) -> list[float]:
    """Shares of queries: some photo answers, the own photo is shown, none of the unlike answers, none for `others`.

    fit (N, N): of the caption of photo i with photo j; like (N, N): cosines of the captions; others (S, N) or None
    margin: what stands in the place of ABOVE_CHANCE
    """
    count = max(2, round(UNLIKE * len(fit)))
    unlike = np.take_along_axis(fit, np.argsort(like, axis=1, kind="stable")[:, :count], axis=1)
    chance = by_chance(len(fit))
    answered = fit.max(1) >= chance + margin
    found = [answered, answered & (np.diag(fit) >= chance), unlike.max(1) < by_chance(count) + margin]
    if others is not None:
        found.append(others.max(1) < chance + margin)
    return [float(x.mean()) for x in found]


def mean_rates(fit: np.ndarray, like: np.ndarray, others: np.ndarray | None, margin: float, size: int) -> list[float]:
    """`rates` among `size` of the photos drawn at random, the mean of some draws."""
    draws = [np.random.default_rng(seed).permutation(len(fit))[:size] for seed in range(DRAWS)]
    found = [rates(fit[i][:, i], like[i][:, i], None if others is None else others[:, i], margin) for i in draws]
    return np.mean(found, axis=0).tolist()


BODY = """\
Photos of {dataset}, {split}, with one caption each{sentences}; `--model` of type {model}.
Means of {draws} draws of so many of {count:,} photos.  `smke search` has a margin of {margin:g}.

| photos | margin | a caption has an answer | its photo is shown | no answer in the {unlike:.0%} unlike it{head}
|---|---|---|---|---|{line}
{rows}
"""


def main(argv: list[str]) -> int:
    """Measures and writes the table."""
    arguments = _parser().parse_args(argv)
    source = open_prepared(arguments.data, arguments.split)
    count = min(arguments.photos or len(source), len(source))
    if count < 2:
        raise UserError(f"--photos={count}: give two or more")
    model = smke_jax.load(arguments.model)
    examples = [source[i] for i in np.linspace(0, len(source) - 1, count).round().astype(int).tolist()]
    rng = np.random.default_rng(0)
    captions = model.encode_texts([str(rng.choice(example.captions)) for example in examples])
    photos = model.encode_images([example.image for example in examples], progress=True)
    phrases = model.encode_texts(PHRASES)
    others = None
    if arguments.sentences:
        lines = [line.strip() for line in arguments.sentences.read_text(encoding="utf-8").splitlines()]
        lines = [line.split(" . ")[0][:CHARACTERS] for line in lines if len(line) > CHARACTERS // 2]
        chosen = rng.choice(len(lines), min(300, len(lines)), replace=False)
        others = fits_of(photos, model.encode_texts([lines[i] for i in chosen]), phrases)
    fit, like = fits_of(photos, captions, phrases), captions @ captions.T
    rows = []
    for size in sorted({min(size, count) for size in (*SIZES, count)}):
        for margin in MARGINS:
            shares = [f"{100 * rate:.0f} %" for rate in mean_rates(fit, like, others, margin, size)]
            rows.append(f"| {size} | {margin:g} | " + " | ".join(shares) + " |")
    body = BODY.format(
        count=count, dataset=source.dataset, split=arguments.split, model=model.description["type"], draws=DRAWS,
        margin=ABOVE_CHANCE, unlike=UNLIKE, rows="\n".join(rows),
        sentences="" if others is None else f", and {len(others)} lines of {arguments.sentences.name}",
        head=" |" if others is None else " | no answer to a sentence |", line="" if others is None else "---|",
    )  # fmt: skip
    command = f"python -m smke_jax.studies.benchmarks.search_cutoff --model=EXPORT --data=DATA --photos={count}"
    command += f" --sentences={arguments.sentences.name}" if arguments.sentences else ""
    record.write(arguments.out, "The cut-off of photo search", command, body)
    say(f"{arguments.out} is written")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("search_cutoff", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="RUN|EXPORT", help="an image-text model")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder written by `smke prepare`")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--photos", type=int, default=0, metavar="N", help="of the split, evenly spread; 0 takes all")
    parser.add_argument("--sentences", type=Path, metavar="FILE", help="text, a sentence or more a line")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
