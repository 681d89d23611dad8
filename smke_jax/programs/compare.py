"""`smke compare`: the work behind smke_jax/flags/compare.py, which says what it does."""

import sys

from smke_jax.__main__ import run_program
from smke_jax.flags.compare import parser
from smke_jax.studies.compare.table import compare


def main(argv: list[str]) -> int:
    """Parses the command line, prints the table and writes it where asked to; returns the exit status."""
    arguments = parser().parse_args(argv)
    print(compare(arguments.runs, arguments.out))
    if arguments.out is not None:
        print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
