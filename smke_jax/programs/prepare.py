"""`smke prepare`: the work behind smke_jax/flags/prepare.py, which says what it does."""

import argparse
import sys
import time
from pathlib import Path

from smke_jax.__main__ import run_program
from smke_jax.data.prepare import reader_of
from smke_jax.data.prepare.build import build, check_free
from smke_jax.data.prepare.items import Options, Skips
from smke_jax.data.prepare.text import prepare_text
from smke_jax.data.sources import open_prepared
from smke_jax.data.tokenizer import Normaliser, train_wordpiece
from smke_jax.errors import UserError
from smke_jax.flags.prepare import TEXT, TOKENIZER, parser
from smke_jax.studies.doctor.machine import cores

SHOWN = 8  # reasons


def main(argv: list[str]) -> int:
    """Parses the command line and runs it; returns the exit status."""
    arguments = parser().parse_args(argv)
    return {TOKENIZER: _tokenizer, TEXT: _text}.get(arguments.dataset, _prepare)(arguments)


def _prepare(arguments: argparse.Namespace) -> int:
    if not arguments.source.is_dir():
        raise UserError(f"--source={arguments.source} is not a folder")
    check_free(arguments.out)
    skips = Skips()
    options = Options(**{key: value for key, value in vars(arguments).items() if key in Options._fields})
    splits = reader_of(arguments.dataset)(arguments.source, options, skips)
    unknown = [name for name in arguments.splits or [] if name not in splits]
    if unknown:
        raise UserError(f"{arguments.source} has no split {unknown[0]!r}: it has {', '.join(splits)}")
    manifest = build(
        {name: items for name, items in splits.items() if name in (arguments.splits or splits)},
        arguments.out,
        dataset=arguments.name,
        skips=skips,
        # Without the workers: their number changes nothing of what is written, and another may finish the work.
        created_by=_plain({key: value for key, value in vars(arguments).items() if key != "workers"}),
        max_side=arguments.max_side,
        workers=arguments.workers or cores(),
    )
    _print_table(manifest, skips, arguments.out)
    return 0


def _text(arguments: argparse.Namespace) -> int:
    skips = Skips()
    manifest = prepare_text(
        {"train": arguments.files} | ({"dev": arguments.dev} if arguments.dev else {}),
        arguments.out,
        tokenizer=arguments.tokenizer,
        skips=skips,
        length=arguments.length,
        rows=arguments.rows,
        holdout=arguments.holdout,
        dataset=arguments.name,
        created_by=_plain(vars(arguments)),
    )
    print(f"{'split':<8}{'rows':>10}{'tokens':>12}{'filled':>10}")
    for split, report in manifest["splits"].items():
        filled = (report["tokens"] / report["rows"] + 2) / manifest["length"]
        print(f"{split:<8}{report['rows']:>10}{report['tokens']:>12}{filled:>9.1%}")
    _print_skips(skips, arguments.out)
    return 0


def _print_table(manifest: dict, skips: Skips, out: Path) -> None:
    print(f"{'split':<8}{'images':>10}{'captions':>10}{'skipped':>10}")
    for split, report in manifest["splits"].items():
        print(f"{split:<8}{report['n_images']:>10}{report['n_captions']:>10}{report['n_skipped']:>10}")
    _print_skips(skips, out)
    print(_balance(manifest))


def _print_skips(skips: Skips, out: Path) -> None:
    for reason, count, where in skips.reasons()[:SHOWN]:
        print(f"skipped {count}x: {reason} (first: {where})")
    for note, count in skips.notes.items():
        print(f"note {count}x: {note}")
    print(f"wrote {out}")


def _balance(manifest: dict) -> str:
    read, kept, skipped = (manifest[f"n_{name}"] for name in ("read", "kept", "skipped"))
    line = f"read {read} = kept {kept} + skipped {skipped}; not reached: {manifest['n_not_reached']}"
    unknown = manifest["n_places_not_reached"]
    return line + (f", and an unknown number in {unknown} damaged places" if unknown else "")


def _tokenizer(arguments: argparse.Namespace) -> int:
    if (arguments.out / "tokenizer.json").exists():
        raise UserError(f"{arguments.out} already holds a tokenizer: remove it or choose another --out")
    start = time.monotonic()
    sources = [open_prepared(arguments.data, split) for split in arguments.splits]
    captions = [text for source in sources for texts in source.all_captions() for text in texts]
    normaliser = Normaliser(*(getattr(arguments, name) for name in Normaliser._fields))
    tokenizer = train_wordpiece(captions, arguments.vocab_size, normaliser)
    tokenizer.save(arguments.out)
    origin = f"{len(captions)} captions of {', '.join(arguments.splits)}"
    print(f"{tokenizer.vocab_size} tokens from {origin}, {time.monotonic() - start:.1f} s")
    if tokenizer.vocab_size < arguments.vocab_size:
        print(f"(fewer than the {arguments.vocab_size} asked for: the captions hold no more)")
    print(f"wrote {arguments.out}")
    return 0


def _plain(value):
    """`value` as JSON can hold it."""
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
