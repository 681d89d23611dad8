"""`smke report`: the work behind smke_jax/flags/report.py, which says what it does."""

import sys

from smke_jax.__main__ import run_program
from smke_jax.flags.report import parser
from smke_jax.training.report import report_run


def main(argv: list[str]) -> int:
    """Parses the command line and writes the reports; returns the exit status."""
    for workdir in parser().parse_args(argv).runs:
        print("\n".join(f"wrote {path}" for path in report_run(workdir)))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
