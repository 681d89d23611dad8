"""`smke plan`: what training a config takes on given devices, before anything is bought, downloaded or run.

It needs the config alone.  Where the devices are not at hand, the train step is compiled for as many simulated ones.
Of a config of several stages it plans the last one.
"""

import argparse
import sys
from pathlib import Path

from smke_jax.__main__ import run_program
from smke_jax.config_files import load_config, override, split_overrides
from smke_jax.errors import UserError
from smke_jax.evaluators.recalls import write_json
from smke_jax.parallel.devices import DEVICES
from smke_jax.studies.plan.figures import Figure, Question, answer, table


def main(argv: list[str]) -> int:
    """Parses the command line, plans and prints; returns the exit status."""
    argv, overrides = split_overrides(argv)
    arguments = _parser().parse_args(argv)
    config = override(load_config(arguments.config), overrides)
    asked = {name: value for name, value in vars(arguments).items() if name in Question._fields}
    figures, notes = answer(config, Question(**asked))
    print(f"{arguments.config} on {arguments.devices} × {arguments.device}, batch_size {config.batch_size}")
    print(table(figures))
    print("\n".join(f"- {note}" for note in notes))
    if arguments.json:
        _write(arguments, overrides, figures, notes)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "smke plan", description=__doc__, epilog="--config.a.b=value changes a field of the config", allow_abbrev=False
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE[:VARIANT]")
    add("--devices", type=_positive, required=True, metavar="N")
    add("--device", choices=DEVICES, required=True)
    add("--examples", type=_positive, metavar="N", help="examples seen in the whole run (default: config.total_steps)")
    add("--images", type=_positive, default=0, metavar="N", help="of the data, where a term keeps something of each")
    add("--price", type=float, metavar="$", help="per device and hour (default: of the table)")
    add("--utilisation", type=_share, default=0.4, metavar="X", help="share of the peak FLOP/s (default: %(default)s)")
    add("--link_use", type=_share, default=0.8, metavar="X", help="share of the links' bytes/s (default: %(default)s)")
    add("--largest", action=argparse.BooleanOptionalAction, default=True,
        help="look for the largest batch that fits, which takes several compilations (default: yes)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def _write(arguments, overrides: list[str], figures: list[Figure], notes: list[str]) -> None:
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    try:
        write_json(
            arguments.json,
            {"arguments": given | {"overrides": overrides}, "figures": [f._asdict() for f in figures], "notes": notes},
        )
    except OSError as error:
        raise UserError(f"cannot write {arguments.json}: {error.strerror}; the figures stand above") from None
    print(f"wrote {arguments.json}")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
