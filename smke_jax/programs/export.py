"""`smke export`: a run's trained network as a directory for others to use, checked against the original.

Of a self-supervised run it is the encoder without its projector, of a run that learns codes the quantiser, both in the
format flax alone: what the config of another run begins with.  Of any other run it is the whole student.  Images and
captions of the run's own data go through both networks; their difference stands in the export's README.md, and an
export that differs too much is not written.  Of a quantiser random vectors go through both.
"""

import argparse
import sys
from pathlib import Path

from smke_jax.__main__ import program_parser, run_program
from smke_jax.convert.export import FORMATS
from smke_jax.convert.export.base import DTYPES
from smke_jax.convert.export.card import likeness_lines
from smke_jax.programs.evaluate import step_argument
from smke_jax.training.export import export_run
from smke_jax.training.state import count_parameters


def main(argv: list[str]) -> int:
    """Parses the command line and writes the directory; returns the exit status."""
    arguments = _parser().parse_args(argv)
    written = export_run(
        arguments.workdir, arguments.out, step=arguments.step, format=arguments.format, dtype=arguments.dtype
    )
    network = written.network
    print(f"{network.description['type']}, {count_parameters(network.params):,} parameters, step {network.record.step}")
    print("\n".join(likeness_lines(written.likeness, written.samples, arguments.dtype)))
    print(f"wrote {arguments.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    formats = "\n".join(f"  {name:8} {form.summary}" for name, form in FORMATS.items())
    parser = program_parser("export", __doc__, "formats:", formats)
    parser.add_argument("--workdir", type=Path, required=True, help="run directory of `smke train`")
    parser.add_argument("--step", type=step_argument, metavar="N|best|latest", help="default: latest")
    parser.add_argument("--format", choices=FORMATS, default="flax", help="default: flax")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights; default: float32")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
