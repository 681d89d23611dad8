"""`smke plan`: the work behind smke_jax/flags/plan.py, which says what it does."""

import argparse
import sys
from pathlib import Path

from smke_jax.__main__ import run_program
from smke_jax.config_files import load_config, override
from smke_jax.errors import UserError
from smke_jax.evaluators.recalls import write_json
from smke_jax.flags.plan import parser
from smke_jax.studies.plan.figures import Figure, Question, answer, table


def main(argv: list[str]) -> int:
    """Parses the command line, plans and prints; returns the exit status."""
    arguments = parser().parse_args(argv)
    config = override(load_config(arguments.config), arguments.overrides)
    asked = {name: value for name, value in vars(arguments).items() if name in Question._fields}
    figures, notes = answer(config, Question(**asked))
    print(f"{arguments.config} on {arguments.devices} × {arguments.device}, batch_size {config.batch_size}")
    print(table(figures))
    print("\n".join(f"- {note}" for note in notes))
    if arguments.json:
        _write(arguments, figures, notes)
    return 0


def _write(arguments: argparse.Namespace, figures: list[Figure], notes: list[str]) -> None:
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    try:
        write_json(
            arguments.json,
            {"arguments": given, "figures": [f._asdict() for f in figures], "notes": notes},
        )
    except OSError as error:
        raise UserError(f"cannot write {arguments.json}: {error.strerror}; the figures stand above") from None
    print(f"wrote {arguments.json}")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
