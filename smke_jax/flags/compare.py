"""`smke compare`: runs beside each other: what differs, what evaluators found, speed; unfinished ones are marked."""

from pathlib import Path

from smke_jax.flags import Parser, program_parser


def parser() -> Parser:
    """The parser of `smke compare`."""
    parser = program_parser("compare", __doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directories, or directories of them such as a sweep's"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write compare.html (table, curves, examples), compare.md, compare.json and plots there",
    )
    return parser
