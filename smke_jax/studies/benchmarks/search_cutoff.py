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
from smke_jax.search.cutoff import ANSWERS, PHRASES, SHOWN, fits, usual_scores
from smke_jax.studies.benchmarks import record
from smke_jax.studies.benchmarks.measure import say

UNLIKE, CHARACTERS = 0.6, 90
THRESHOLDS = (2.5, 3.0, 3.5, 4.0, 4.5)


def fits_of(photos: np.ndarray, queries: np.ndarray, phrases: np.ndarray) -> np.ndarray:
    """`cutoff.fits` (Q, N) of every query with every photo."""
    usual = usual_scores(photos, phrases)
    return np.stack([fits(scores, *usual) for scores in queries @ photos.T])


def rates(fit: np.ndarray, like: np.ndarray, others: np.ndarray | None, threshold: float) -> list[float]:
    """Shares of queries: the own photo passes, the best photo passes, none of the unlike passes, none for `others`.

    fit (N, N): of the caption of photo i with photo j; like (N, N): cosines of the captions; others (S, N) or None
    """
    count = max(1, round(UNLIKE * len(fit)))
    unlike = np.take_along_axis(fit, np.argsort(like, axis=1, kind="stable")[:, :count], axis=1)
    found = [np.diag(fit) >= threshold, fit.max(1) >= threshold, unlike.max(1) < threshold]
    if others is not None:
        found.append(others.max(1) < threshold)
    return [float(x.mean()) for x in found]


BODY = """\
{count:,} photos of {dataset}, {split}, with one caption each{sentences}; `--model` of type {model}.  `smke search` says
that there is no answer where no photo reaches {answers:g} and then shows those that reach {shown:g}.

| threshold | the caption's photo reaches it | the best photo reaches it | no photo of {unlike:.0%} does{head} |
|---|---|---|---|{line}
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
    rows = [
        f"| {x:g} | " + " | ".join(f"{100 * rate:.0f} %" for rate in rates(fit, like, others, x)) + " |"
        for x in THRESHOLDS
    ]
    body = BODY.format(
        count=count, dataset=source.dataset, split=arguments.split, model=model.description["type"], answers=ANSWERS,
        shown=SHOWN, unlike=UNLIKE, rows="\n".join(rows),
        sentences="" if others is None else f", and {len(others)} lines of {arguments.sentences.name}",
        head="" if others is None else " | no photo does, for a sentence", line="" if others is None else "---|",
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
