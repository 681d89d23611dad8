"""`smke report`: makes report.html and report.md of runs anew; training makes them at its evaluations."""

from pathlib import Path

from smke_jax.flags import Parser, program_parser


def parser() -> Parser:
    """The parser of `smke report`."""
    parser = program_parser("report", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories of `smke train`")
    return parser
