"""`smke export`: the work behind smke_jax/flags/export.py, which says what it does."""

import sys

from smke_jax.__main__ import run_program
from smke_jax.convert.export.card import likeness_lines
from smke_jax.flags.export import parser
from smke_jax.training.export import export_run
from smke_jax.training.state import count_parameters


def main(argv: list[str]) -> int:
    """Parses the command line and writes the directory; returns the exit status."""
    arguments = parser().parse_args(argv)
    written = export_run(
        arguments.workdir, arguments.out, step=arguments.step, format=arguments.format, dtype=arguments.dtype
    )
    network = written.network
    print(f"{network.description['type']}, {count_parameters(network.params):,} parameters, step {network.record.step}")
    print("\n".join(likeness_lines(written.likeness, written.samples, arguments.dtype)))
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
