"""`smke ladder`: the thesis' recipes one after another on the same photos, and the table of what each brings.

    smke ladder --minutes=5                                 all of them, five minutes of training each
    smke ladder --recipes=ctl,s_smke,token_types:after --seeds=1,2,3 --write_readme

Recipes are the config files with a constant RUNGS. Each is trained in the form given by --form, in OUT/NAME,seed=SEED;
any --config.key=value holds for all of them. The same command leaves finished runs alone and continues interrupted
ones; ladder.md, ladder.json and ladder.png in OUT hold all recipes that have a run there, after each of them anew.

The form flickr8k needs data/flickr8k and runs/teacher_flickr8k/export, which README.md tells how to make; s_smke_vq a
run of configs/image_vq.py:flickr8k in runs/image_vq; finetune_retrieval an export of configs/s_smke.py:flickr8k in
runs/s_smke_flickr8k/export.
"""

import argparse
import re
import shlex
import signal
import sys
from pathlib import Path

from smke_jax.__main__ import run_program
from smke_jax.config import FORMS
from smke_jax.errors import UserError
from smke_jax.programs.train import load_config, load_rungs, nearest, override, override_key, split_overrides
from smke_jax.studies.ladder.write import run_name, write_ladder, write_readme
from smke_jax.reporting.machine import header
from smke_jax.rungs import Recipe, in_order
from smke_jax.studies.calibration import Calibrations
from smke_jax.training.experiment import resolve
from smke_jax.studies.jobs import FAILED, FINISHED, Job, Ledger, is_finished, report_outcome, run_jobs
from smke_jax.training.record import flatten


def main(argv: list[str]) -> int:
    """Parses the command line, trains what is not finished and writes the table; returns the exit status."""
    own, overrides = split_overrides(argv)
    arguments = _parser().parse_args(own)
    _check(arguments, overrides)
    recipes = find_recipes(arguments.configs)
    climb = Climb(arguments, overrides)
    chosen = choose(recipes, arguments.recipes)
    if arguments.reference not in ("", *(names := [recipe.name for recipe in recipes])):
        raise UserError(f"no recipe {arguments.reference}{nearest(arguments.reference, names)}")
    Ledger(arguments.out).check([job for recipe in chosen for job in climb.jobs(recipe)])
    if arguments.dry_run:
        print("\n".join(climb.describe(recipe) for recipe in chosen))
        return 0
    records, text, picture = {}, "", b""
    head = f"Last command: `{shlex.join(['smke', 'ladder', *argv])}`\n\n{header()}"
    for number, recipe in enumerate(chosen, 1):
        print(f"recipe {number} of {len(chosen)}: {recipe.name}", file=sys.stderr)
        was_finished = climb.is_finished(recipe)
        found, stopped_by = climb.run(recipe)
        records |= found
        last = stopped_by or number == len(chosen)
        # After each that brings something new, for those who look in between.
        if (last or not was_finished) and any(arguments.out.glob("*/run.json")):
            text, picture = write_ladder(recipes, arguments.out, reference=arguments.reference, head=head)
        if stopped_by:
            print(f"stopped by {signal.Signals(stopped_by).name}; the same command continues", file=sys.stderr)
            return 128 + stopped_by
    if text:
        print(text)
        if arguments.write_readme:
            write_readme(arguments.configs, text, picture)
    return report_outcome(records)


def find_recipes(folder: Path) -> list[Recipe]:
    """The rungs of all config files in `folder`, from the lowest up; UserError where there are none."""
    files = sorted(folder.glob("*.py"))
    recipes = in_order([Recipe(file, rung) for file in files for rung in load_rungs(str(file))])
    if not recipes:
        raise UserError(f"no config in {folder} has a constant RUNGS: give --configs=DIR")
    return recipes


def choose(recipes: list[Recipe], names: list[str]) -> list[Recipe]:
    """Those of `recipes` named 'file' (with all of its variants) or 'file:variant', in their order; '' names all."""
    known = {recipe.name for recipe in recipes} | {recipe.file.stem for recipe in recipes}
    for name in names:
        if name not in known:
            raise UserError(f"no recipe {name}{nearest(name, sorted(known))}; --dry_run lists them")
    return [recipe for recipe in recipes if not names or {recipe.name, recipe.file.stem} & set(names)]


class Climb:
    """The runs that a command line asks for, recipe by recipe."""

    def __init__(self, arguments, overrides: list[str]):
        self.form, self.seeds, self.minutes = arguments.form, arguments.seeds, arguments.minutes
        self.out, self.overrides = arguments.out, overrides
        self.calibrations = Calibrations(self.out)

    def jobs(self, recipe: Recipe) -> list[Job]:
        """One for each seed; none as long as it has to be measured how many steps fill the minutes."""
        jobs = self._jobs(recipe)
        if not self.minutes:
            return jobs
        steps = self.calibrations.total_steps(recipe.name, jobs, self.minutes)
        return self._jobs(recipe, f"--config.total_steps={steps}", "--config.epochs=0.0") if steps else []

    def run(self, recipe: Recipe) -> tuple[dict[str, dict], int]:
        """Trains its seeds, after timing a few steps where --minutes asks for it; returns as `run_jobs` does."""
        if refusal := self.refusal(recipe):
            return self._failed(recipe, refusal), 0
        if not (jobs := self.jobs(recipe)):
            print("its speed is measured first", file=sys.stderr)
            asked = self._jobs(recipe)
            record, stopped_by = self.calibrations.measure(recipe.name, asked[0], self.minutes)
            if stopped_by:
                return {}, stopped_by
            if record["state"] != FINISHED:
                return self._failed(recipe, f"its speed could not be measured: {record['error']}"), 0
            jobs = self.jobs(recipe)
        return run_jobs(jobs, self.out, skipped={}, environment={})

    def is_finished(self, recipe: Recipe) -> bool:
        """Whether nothing of it is left to be run."""
        jobs = self.jobs(recipe)
        return bool(jobs) and all(is_finished(self.out / job.name) for job in jobs)

    def refusal(self, recipe: Recipe) -> str:
        """What `smke train` would refuse of its config, or nothing."""
        try:
            resolve(override(load_config(recipe.location(self.form)), self.overrides))
        except UserError as error:
            return str(error)
        return ""

    def _failed(self, recipe: Recipe, reason: str) -> dict[str, dict]:
        ledger, jobs = Ledger(self.out), self._jobs(recipe)
        for job in jobs:
            ledger.note(job, FAILED, reason)
        return {job.name: ledger.records[job.name] for job in jobs}

    def describe(self, recipe: Recipe) -> str:
        """What `run` would do, with the commands."""
        ready, lines = self.jobs(recipe), []
        measured = "" if ready else ", with as many steps as a short run will tell"
        refusal = self.refusal(recipe)
        for job in ready or self._jobs(recipe):
            state = "finished" if is_finished(self.out / job.name) else "to be run"
            if refusal and state != "finished":
                state = f"cannot run as it is ({refusal})"
            lines.append(f"{job.name}: {state}{measured}\n  smke {shlex.join(job.command(self.out / job.name)[3:])}")
        return "\n".join(lines)

    def _jobs(self, recipe: Recipe, *more: str) -> list[Job]:
        location, jobs = recipe.location(self.form), []
        for seed in [(f"--config.seed={seed}",) for seed in self.seeds] or [()]:
            flags = (*self.overrides, *more, *seed)
            config = override(load_config(location), list(flags))
            jobs.append(Job(run_name(recipe, config.seed), location, flags, flatten(config)))
        return jobs


def _check(arguments, overrides: list[str]) -> None:
    given = {override_key(argument) for argument in overrides}
    for flag, value, keys in (
        ("--minutes", arguments.minutes, ("config.total_steps", "config.epochs")),
        ("--seeds", arguments.seeds, ("config.seed",)),
    ):
        if value and (both := given & set(keys)):
            raise UserError(f"{both.pop()} and {flag} say the same: give one of them")


def _parser() -> argparse.ArgumentParser:
    summary, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        "smke ladder", description=summary, epilog=more, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
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
