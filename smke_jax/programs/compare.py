"""`smke compare`: runs beside each other: what differs, what evaluators found, speed; unfinished ones are marked."""

import argparse
import sys
from pathlib import Path

from smke_jax.__main__ import run_program
from smke_jax.studies.compare.table import compare


def main(argv: list[str]) -> int:
    """Parses the command line, prints the table and writes it where asked to; returns the exit status."""
    arguments = _parser().parse_args(argv)
    print(compare(arguments.runs, arguments.out))
    if arguments.out is not None:
        print(f"wrote {arguments.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("smke compare", description=__doc__, allow_abbrev=False)
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


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
