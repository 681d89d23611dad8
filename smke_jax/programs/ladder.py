"""`smke ladder`: the thesis' recipes one after another on the same photos, and the table of what each brings.

    smke ladder --minutes=5                                 all of them, five minutes of training each
    smke ladder --recipes=ctl,s_smke,token_types:after --seeds=1,2,3 --write_readme

Recipes are the config files with a constant RUNGS. Each is trained in the form given by --form, in OUT/NAME,seed=SEED;
a recipe of several stages in folders of that directory. Any --config.key=value holds for all recipes. The same command
leaves finished runs alone and continues interrupted ones. ladder.md, ladder.json and ladder.png in OUT hold all recipes
that have a run there, after each of them anew.

The form flickr8k needs data/flickr8k, which README.md tells how to make. Its teacher is trained first, once for all
recipes, where runs/teacher_flickr8k/export is missing.
"""

import argparse
import re
import shlex
import signal
import sys
from pathlib import Path

from smke_jax.__main__ import program_parser, run_program
from smke_jax.config_files import override_key, split_overrides
from smke_jax.errors import UserError, nearest
from smke_jax.forms import FORMS
from smke_jax.reporting.machine import header
from smke_jax.studies.jobs import report_outcome
from smke_jax.studies.ladder.climb import Climb
from smke_jax.studies.ladder.lines import has_runs
from smke_jax.studies.ladder.recipes import choose, find_recipes
from smke_jax.studies.ladder.write import write_ladder, write_readme


def main(argv: list[str]) -> int:
    """Parses the command line, trains what is not finished and writes the table; returns the exit status."""
    own, overrides = split_overrides(argv)
    arguments = _parser().parse_args(own)
    _check(arguments, overrides)
    recipes = find_recipes(arguments.configs)
    if arguments.reference not in ("", *(names := [recipe.name for recipe in recipes])):
        raise UserError(f"no recipe {arguments.reference}{nearest(arguments.reference, names)}")
    climb = Climb(
        choose(recipes, arguments.recipes), arguments.out, configs=arguments.configs, form=arguments.form,
        seeds=arguments.seeds, minutes=arguments.minutes, overrides=overrides,
    )  # fmt: skip
    climb.check()
    if arguments.dry_run:
        print(climb.describe())
        return 0
    records, stopped_by = climb.run_shared()
    if stopped_by:
        return _stopped(stopped_by)
    text, picture = "", b""
    head = f"Last command: `{shlex.join(['smke', 'ladder', *argv])}`\n\n{header()}"
    for number, recipe in enumerate(climb.recipes, 1):
        print(f"recipe {number} of {len(climb.recipes)}: {recipe.name}", file=sys.stderr)
        was_finished = climb.is_finished(recipe)
        found, stopped_by = climb.run(recipe)
        records |= found
        last = stopped_by or number == len(climb.recipes)
        # After each that brings something new, for those who look in between.
        if (last or not was_finished) and has_runs(recipes, arguments.out):
            text, picture = write_ladder(recipes, arguments.out, reference=arguments.reference, head=head)
        if stopped_by:
            return _stopped(stopped_by)
    if text:
        print(text)
        if arguments.write_readme:
            write_readme(arguments.configs, text, picture)
    return report_outcome(records)


def _stopped(number: int) -> int:
    print(f"stopped by {signal.Signals(number).name}; the same command continues", file=sys.stderr)
    return 128 + number


def _check(arguments, overrides: list[str]) -> None:
    given = {override_key(argument) for argument in overrides}
    for flag, value, keys in (
        ("--minutes", arguments.minutes, ("config.total_steps", "config.epochs")),
        ("--seeds", arguments.seeds, ("config.seed",)),
    ):
        if value and (both := given & set(keys)):
            raise UserError(f"{both.pop()} and {flag} say the same: give one of them")


def _parser() -> argparse.ArgumentParser:
    parser = program_parser("ladder", __doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/ladder"), metavar="DIR", help="default: runs/ladder")
    add("--configs", type=Path, default=Path("configs"), metavar="DIR", help="folder of configs; default: configs")
    add("--form", choices=sorted(FORMS), default="flickr8k", help="of each config; default: flickr8k")
    add("--recipes", type=_names, default=[], metavar="A,B:VARIANT,…", help="these alone; default: all")
    add("--seeds", type=_seeds, default=[], metavar="A,B,…", help="a run for each; default: the seed of the config")
    add("--minutes", type=_minutes, default=0.0, metavar="M", help="training time of each run, for which a short run "
        "finds the number of steps; default: the steps of the config")  # fmt: skip
    add("--reference", default="", metavar="NAME", help="compare all with this recipe, not each with its own")
    add("--write_readme", action="store_true", help="put the table and its plot into README.md of the configs")
    add("--dry_run", action="store_true", help="print the runs and their commands alone")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _seeds(text: str) -> list[int]:
    if not all(name.isdecimal() for name in _names(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers")
    return list(dict.fromkeys(map(int, _names(text))))


def _minutes(text: str) -> float:
    if not re.fullmatch(r"\d*\.?\d+", text) or not float(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return float(text)


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
