"""`smke prepare`: make a dataset, running text, or a tokenizer ready for training."""

from pathlib import Path

from smke_jax.data.prepare import READERS
from smke_jax.flags import Parser, names, positive, program_parser

# Flags that only some readers know, so that no other takes one and ignores it.
SPLIT_READERS = ("flickr8k", "flickr30k", "cc", "jsonl", "folder")
NORMALISER_FLAGS = {
    "lowercase": "keep capital letters",
    "strip_accents": "keep the marks on letters, which tell words apart in Vietnamese, Hindi, Thai and Japanese",
    "split_cjk": "do not make every Chinese character a word of its own",
}
HOLDOUT_READERS = ("folder",)
TEXT, TOKENIZER = "text", "tokenizer"  # what is prepared besides image-text data


def parser() -> Parser:
    """The parser of `smke prepare`."""
    parser = program_parser("prepare", __doc__)
    commands = parser.add_subparsers(metavar="DATASET", required=True)
    for name, summary in READERS.items():
        command = commands.add_parser(name, help=summary, allow_abbrev=False)
        command.add_argument("--source", type=Path, required=True, help="folder with the unpacked dataset")
        command.add_argument("--out", type=Path, required=True, help="folder to write")
        command.add_argument(
            "--name", default=name, help="of the dataset in reports, such as cc3m (default: %(default)s)"
        )
        command.add_argument(
            "--max_side", type=positive, metavar="N",
            help="shrink images whose shorter side has more than N pixels, to JPEG (default: keep all as they are)",
        )  # fmt: skip
        command.add_argument(
            "--workers", type=positive, metavar="N",
            help="processes that decode and shrink images, started where there are hundreds; what is written "
            "does not depend on N (default: one for each usable core)",
        )  # fmt: skip
        command.add_argument("--splits", type=names, metavar="A,B", help="only these splits (default: all)")
        if name in SPLIT_READERS:
            command.add_argument("--split", default="train", help="name the split of data that has none")
        if name in HOLDOUT_READERS:
            command.add_argument("--holdout", type=positive, default=0, metavar="N", help="N images for dev")
        command.set_defaults(dataset=name)
    command = commands.add_parser(TEXT, help="running text, as rows of tokens of one length", allow_abbrev=False)
    command.add_argument("files", type=Path, nargs="+", metavar="FILE", help="text files, one paragraph a line")
    command.add_argument("--out", type=Path, required=True, help="folder to write")
    command.add_argument("--tokenizer", type=Path, required=True, help="folder with vocab.txt or tokenizer.json")
    command.add_argument("--name", default="text", help="of the dataset in reports (default: %(default)s)")
    command.add_argument(
        "--length", type=positive, default=256, metavar="N",
        help="tokens of a row, [CLS] and [SEP] included (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--rows", choices=("lines", "running"), default="lines",
        help="lines: as many whole lines as fit; running: cut wherever a row is full (default: %(default)s)",
    )  # fmt: skip
    held = command.add_mutually_exclusive_group()
    held.add_argument("--dev", type=Path, nargs="+", default=(), metavar="FILE", help="text files of the split dev")
    held.add_argument("--holdout", type=positive, default=0, metavar="N", help="the last N rows for dev")
    command.set_defaults(dataset=TEXT)
    command = commands.add_parser(TOKENIZER, help="train a WordPiece vocabulary", allow_abbrev=False)
    command.add_argument("--data", type=Path, required=True, help="folder written by `smke prepare`")
    command.add_argument("--out", type=Path, required=True, help="folder to write")
    command.add_argument("--vocab_size", type=positive, default=8000, metavar="N")
    command.add_argument("--splits", type=names, default=["train"], metavar="A,B", help="default: train")
    for name, what in NORMALISER_FLAGS.items():
        command.add_argument(f"--no_{name}", dest=name, action="store_false", help=what)
    command.set_defaults(dataset=TOKENIZER)
    return parser
