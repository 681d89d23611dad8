"""`smke prepare`: make a dataset, running text, or a tokenizer ready for training."""

import argparse
import sys
import time
from pathlib import Path

from smke_jax.__main__ import run_program
from smke_jax.data.prepare import PREPARERS
from smke_jax.data.prepare.build import build, check_free
from smke_jax.data.prepare.items import Options, Skips
from smke_jax.data.prepare.text import ROWS, prepare_text
from smke_jax.data.sources import open_prepared
from smke_jax.data.tokenizer import Normaliser, train_wordpiece
from smke_jax.errors import UserError

# Flags that only some readers know, so that no other takes one and ignores it.
SPLIT_READERS = ("flickr8k", "flickr30k", "cc", "jsonl", "folder")
NORMALISER_FLAGS = {
    "lowercase": "keep capital letters",
    "strip_accents": "keep the marks on letters, which tell words apart in Vietnamese, Hindi, Thai and Japanese",
    "split_cjk": "do not make every Chinese character a word of its own",
}
SHOWN = 8  # reasons
HOLDOUT_READERS = ("folder",)


def main(argv: list[str]) -> int:
    """Parses the command line and runs it; returns the exit status."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("smke prepare", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="DATASET", required=True)
    for name, reader in PREPARERS.items():
        command = commands.add_parser(name, help=reader.__doc__.splitlines()[0], allow_abbrev=False)
        command.add_argument("--source", type=Path, required=True, help="folder with the unpacked dataset")
        command.add_argument("--out", type=Path, required=True, help="folder to write")
        command.add_argument(
            "--name", default=name, help="of the dataset in reports, such as cc3m (default: %(default)s)"
        )
        command.add_argument(
            "--max_side", type=_positive, metavar="N",
            help="shrink images whose shorter side has more than N pixels, to JPEG (default: keep all as they are)",
        )  # fmt: skip
        command.add_argument("--splits", type=_names, metavar="A,B", help="only these splits (default: all)")
        if name in SPLIT_READERS:
            command.add_argument("--split", default="train", help="name the split of data that has none")
        if name in HOLDOUT_READERS:
            command.add_argument("--holdout", type=_positive, default=0, metavar="N", help="N images for dev")
        command.set_defaults(run=_prepare, dataset=name)
    command = commands.add_parser("text", help="running text, as rows of tokens of one length", allow_abbrev=False)
    command.add_argument("files", type=Path, nargs="+", metavar="FILE", help="text files, one paragraph a line")
    command.add_argument("--out", type=Path, required=True, help="folder to write")
    command.add_argument("--tokenizer", type=Path, required=True, help="folder with vocab.txt or tokenizer.json")
    command.add_argument("--name", default="text", help="of the dataset in reports (default: %(default)s)")
    command.add_argument(
        "--length", type=_positive, default=256, metavar="N",
        help="tokens of a row, [CLS] and [SEP] included (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--rows", choices=ROWS, default="lines",
        help="lines: as many whole lines as fit; running: cut wherever a row is full (default: %(default)s)",
    )  # fmt: skip
    held = command.add_mutually_exclusive_group()
    held.add_argument("--dev", type=Path, nargs="+", default=(), metavar="FILE", help="text files of the split dev")
    held.add_argument("--holdout", type=_positive, default=0, metavar="N", help="the last N rows for dev")
    command.set_defaults(run=_text)
    command = commands.add_parser("tokenizer", help="train a WordPiece vocabulary", allow_abbrev=False)
    command.add_argument("--data", type=Path, required=True, help="folder written by `smke prepare`")
    command.add_argument("--out", type=Path, required=True, help="folder to write")
    command.add_argument("--vocab_size", type=_positive, default=8000, metavar="N")
    command.add_argument("--splits", type=_names, default=["train"], metavar="A,B", help="default: train")
    for name, what in NORMALISER_FLAGS.items():
        command.add_argument(f"--no_{name}", dest=name, action="store_false", help=what)
    command.set_defaults(run=_tokenizer)
    return parser


def _prepare(arguments: argparse.Namespace) -> int:
    if not arguments.source.is_dir():
        raise UserError(f"--source={arguments.source} is not a folder")
    check_free(arguments.out)
    skips = Skips()
    options = Options(**{key: value for key, value in vars(arguments).items() if key in Options._fields})
    splits = PREPARERS[arguments.dataset](arguments.source, options, skips)
    unknown = [name for name in arguments.splits or [] if name not in splits]
    if unknown:
        raise UserError(f"{arguments.source} has no split {unknown[0]!r}: it has {', '.join(splits)}")
    manifest = build(
        {name: items for name, items in splits.items() if name in (arguments.splits or splits)},
        arguments.out,
        dataset=arguments.name,
        skips=skips,
        created_by={key: _plain(value) for key, value in vars(arguments).items() if key != "run"},
        max_side=arguments.max_side,
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
        created_by={key: _plain(value) for key, value in vars(arguments).items() if key != "run"},
    )
    print(f"{'split':<8}{'rows':>10}{'tokens':>12}{'filled':>10}")
    for split, report in manifest["splits"].items():
        filled = (report["tokens"] / report["rows"] + 2) / manifest["length"]
        print(f"{split:<8}{report['rows']:>10}{report['tokens']:>12}{filled:>9.1%}")
    for reason, count, where in skips.reasons()[:SHOWN]:
        print(f"skipped {count}x: {reason} (first: {where})")
    for note, count in skips.notes.items():
        print(f"note {count}x: {note}")
    print(f"wrote {arguments.out}")
    return 0


def _print_table(manifest: dict, skips: Skips, out: Path) -> None:
    print(f"{'split':<8}{'images':>10}{'captions':>10}{'skipped':>10}")
    for split, report in manifest["splits"].items():
        print(f"{split:<8}{report['n_images']:>10}{report['n_captions']:>10}{report['n_skipped']:>10}")
    for reason, count, where in skips.reasons()[:SHOWN]:
        print(f"skipped {count}x: {reason} (first: {where})")
    for note, count in skips.notes.items():
        print(f"note {count}x: {note}")
    print(f"wrote {out}")
    print(_balance(manifest))


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
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return str(value) if isinstance(value, Path) else value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
