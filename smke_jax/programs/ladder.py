"""`smke ladder`: the work behind smke_jax/flags/ladder.py, which says what it does."""

import argparse
import shlex
import signal
import sys

from smke_jax.__main__ import run_program
from smke_jax.config_files import override_key
from smke_jax.errors import UserError, nearest
from smke_jax.flags.ladder import parser
from smke_jax.reporting.machine import header
from smke_jax.studies.jobs import report_outcome
from smke_jax.studies.ladder.climb import Climb
from smke_jax.studies.ladder.lines import has_runs
from smke_jax.studies.ladder.recipes import choose, find_recipes
from smke_jax.studies.ladder.write import write_ladder, write_table


def main(argv: list[str]) -> int:
    """Parses the command line, trains what is not finished and writes the table; returns the exit status."""
    arguments = parser().parse_args(argv)
    _check(arguments)
    recipes = find_recipes(arguments.configs)
    if arguments.reference not in ("", *(names := [recipe.name for recipe in recipes])):
        raise UserError(f"no recipe {arguments.reference}{nearest(arguments.reference, names)}")
    climb = Climb(
        choose(recipes, arguments.recipes), arguments.out, configs=arguments.configs, form=arguments.form,
        seeds=arguments.seeds, minutes=arguments.minutes, overrides=arguments.overrides,
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
        if arguments.write_table:
            write_table(arguments.configs, text, picture)
    return report_outcome(records)


def _stopped(number: int) -> int:
    print(f"stopped by {signal.Signals(number).name}; the same command continues", file=sys.stderr)
    return 128 + number


def _check(arguments: argparse.Namespace) -> None:
    given = {override_key(argument) for argument in arguments.overrides}
    for flag, value, keys in (
        ("--minutes", arguments.minutes, ("config.total_steps", "config.epochs")),
        ("--seeds", arguments.seeds, ("config.seed",)),
    ):
        if value and (both := given & set(keys)):
            raise UserError(f"{both.pop()} and {flag} say the same: give one of them")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
