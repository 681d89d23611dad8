"""The runs of the ladder: which jobs the recipes are, and in which order they are trained."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from smke_jax.config_files import load_config, load_stages, override_key, override_stages
from smke_jax.convert.params_file import params_path
from smke_jax.errors import UserError
from smke_jax.forms import FLICKR8K_TEACHER
from smke_jax.studies.calibration import Calibrations
from smke_jax.studies.job import Job, check_config, make_job, start_files
from smke_jax.studies.jobs import FAILED, FINISHED, Ledger, run_jobs
from smke_jax.studies.ladder.recipes import Recipe
from smke_jax.training.record import MAY_CHANGE, flatten

# {export that recipes start from: the config file that makes it}: trained first where it is missing, once for all.
SHARED = {FLICKR8K_TEACHER: "teacher_flickr8k.py"}

Records = dict[str, dict]  # {run: how it ended}, see `run_jobs`


class Climb:
    """The runs that a command line asks for, recipe by recipe.

    recipes:   in the order in which they are trained
    out:       directory of their runs
    configs:   folder of the configs
    form:      of smke_jax.forms.FORMS
    seeds:     a run for each; () is the seed of the config
    minutes:   training time of each run; 0 takes the steps of the config
    overrides: `--config.key=value` of all recipes
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        out: Path,
        *,
        configs: Path,
        form: str,
        seeds: Sequence[int] = (),
        minutes: float = 0.0,
        overrides: Sequence[str] = (),
    ):
        self.recipes, self.out, self.configs, self.form = recipes, out, configs, form
        self.seeds, self.minutes, self.overrides = seeds, minutes, overrides
        self.calibrations = Calibrations(out)

    def check(self) -> None:
        """Raises UserError for flags that do not fit, and for runs that were begun with another config."""
        Ledger(self.out).check([job for recipe in self.recipes for job in self.jobs(recipe)])

    def jobs(self, recipe: Recipe) -> list[Job]:
        """One for each seed; none as long as it has to be measured how many steps fill the minutes."""
        jobs = self._jobs(recipe)
        if not self.minutes:
            return jobs
        steps = self.calibrations.total_steps(recipe.name, jobs, self.minutes)
        return self._jobs(recipe, f"--config.total_steps={steps}", "--config.epochs=0.0") if steps else []

    def shared(self) -> dict[str, Job]:
        """{export: the job that makes it} of the exports of SHARED that recipes start from and that are missing."""
        files = set()
        for recipe in self.recipes:
            stages = override_stages(load_stages(recipe.location(self.form)), self._flags(recipe))
            files |= {file for stage in stages.values() for file in start_files(flatten(stage)).values()}
        found = {}
        for file in sorted(files & SHARED.keys()):
            config = self.configs / SHARED[file]
            if config.is_file() and not params_path(file).is_file():
                flags = [x for x in known(self.overrides, load_config(str(config))) if is_free(x)]
                found[file] = make_job(Path(file).parent.name, str(config), flags, exports=True)
        return found

    def run_shared(self) -> tuple[Records, int]:
        """Makes what `shared` says; returns as `run_jobs` does."""
        records: Records = {}
        for file, job in self.shared().items():
            found, stopped_by = run_jobs([job], folder_of(file), skipped={}, environment={})
            records |= found
            if stopped_by:
                return records, stopped_by
        return records, 0

    def run(self, recipe: Recipe) -> tuple[Records, int]:
        """Trains its seeds, after timing a few steps where minutes are given; returns as `run_jobs` does."""
        if refusal := self._refusal(recipe):
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
        return bool(jobs) and all(job.is_finished(self.out) for job in jobs)

    def describe(self) -> str:
        """What would be run, with the commands."""
        shared = self.shared()
        lines = [job.describe(folder_of(file)) for file, job in shared.items()]
        return "\n".join([*lines, *(line for recipe in self.recipes for line in self._describe(recipe, shared))])

    def _describe(self, recipe: Recipe, made: Mapping[str, Job]) -> list[str]:
        ready = self.jobs(recipe)
        state = "" if ready else "to be run, with as many steps as a short run will tell"
        if refusal := self._refusal(recipe, made):
            state = f"cannot run as it is ({refusal})"
        return [job.describe(self.out, state) for job in ready or self._jobs(recipe)]

    def _refusal(self, recipe: Recipe, made: Mapping[str, Job] | None = None) -> str:
        """What `smke train` would refuse of its config, or nothing."""
        try:
            check_config(recipe.location(self.form), self._flags(recipe), made=made or ())
        except UserError as error:
            return str(error)
        return ""

    def _failed(self, recipe: Recipe, reason: str) -> Records:
        ledger, jobs = Ledger(self.out), self._jobs(recipe)
        for job in jobs:
            ledger.note(job, FAILED, reason)
        return {job.name: ledger.records[job.name] for job in jobs}

    def _jobs(self, recipe: Recipe, *more: str) -> list[Job]:
        location, jobs = recipe.location(self.form), []
        for seed in [(f"--config.seed={seed}",) for seed in self.seeds] or [()]:
            flags = self._flags(recipe, *more, *seed)
            *_, last = override_stages(load_stages(location), flags).values()
            jobs.append(make_job(recipe.run_name(last.seed), location, flags))
        return jobs

    def _flags(self, recipe: Recipe, *more: str) -> list[str]:
        """The flags of all recipes and `more`.

        Seeds, and where and how a run is computed, hold for the stages before the last one, too.  A stage that other
        runs share keeps its seed.
        """
        flags = [*self.overrides, *more]
        *earlier, _ = load_stages(recipe.location(self.form)).items()
        for name, config in earlier:
            keeps_seed = "/" in name
            for flag in known([*self.overrides, *more], config):
                if is_free(flag) or (override_key(flag) == "config.seed" and not keeps_seed):
                    flags.append(flag.replace("config.", f"config.{name}.", 1))
        return flags


def folder_of(file: str) -> Path:
    """The directory of the job that makes this export."""
    return Path(file).parent.parent


def is_free(flag: str) -> bool:
    """Whether it says where or how a run is computed, not what is trained."""
    return bool(MAY_CHANGE.fullmatch(override_key(flag)))


def known(flags: Sequence[str], config: ConfigDict) -> list[str]:
    """Those of the flags whose key `config` has."""
    keys = flatten(config.copy_and_resolve_references())
    return [flag for flag in flags if override_key(flag) in keys]
