"""`smke report`: makes report.html and report.md of runs anew; training makes them at its evaluations."""

import argparse
import sys
from pathlib import Path

from smke_jax.__main__ import run_program
from smke_jax.training.report import report_run


def main(argv: list[str]) -> int:
    """Parses the command line and writes the reports; returns the exit status."""
    for workdir in _parser().parse_args(argv).runs:
        print("\n".join(f"wrote {path}" for path in report_run(workdir)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("smke report", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories of `smke train`")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
