"""One run to be trained: its name, its config, and what of it is done."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smke_jax.config_files import load_stages, override_stages
from smke_jax.convert.params_file import params_path
from smke_jax.errors import UserError
from smke_jax.networks.start import RANDOM
from smke_jax.reporting.run_file import read_run
from smke_jax.training import record
from smke_jax.training.build import resolve
from smke_jax.training.stages import EXPORT, MARK

# Fields of a network that name a file, or 'random': the network, and the part of it that starts so, if not the whole.
START = re.compile(r"config\.networks\.(\w+)\.(?:(\w+)_)?start")


class Job(NamedTuple):
    """One run to be trained.

    name:      of its directory
    config:    FILE or FILE:VARIANT
    overrides: --config.key=value
    fields:    the flattened config that these give; of several stages, that of the last
    stages:    in their order; () where there is one
    exports:   whether its network is also written to the folder `export` of its directory, for other runs to start from
    """

    name: str
    config: str
    overrides: tuple[str, ...]
    fields: dict[str, Any]
    stages: tuple[str, ...] = ()
    exports: bool = False

    def directory(self, out: Path) -> Path:
        """Where the run lies whose figures count: of several stages, the last."""
        return out / self.name / (self.stages[-1] if self.stages else "")

    def is_begun(self, out: Path) -> bool:
        """Whether a run is there, of whatever stage."""
        return any((out / self.name).glob("run.json")) or any((out / self.name).glob("*/run.json"))

    def is_finished(self, out: Path) -> bool:
        """Whether nothing is left to be done."""
        directory = self.directory(out)
        return is_trained(directory) and (not self.exports or (directory / EXPORT).is_dir())

    def programs(self, out: Path) -> list[list[str]]:
        """The arguments of `smke` that do what is left to be done."""
        directory, found = self.directory(out), []
        if not is_trained(directory):
            found.append(["train", f"--config={self.config}", f"--workdir={out / self.name}", *self.overrides])
        if self.exports and not self.is_finished(out):
            found.append(["export", f"--workdir={directory}", f"--out={directory / EXPORT}"])
        return found

    def describe(self, out: Path, state: str = "") -> str:
        """Its state and the commands that are left, for people."""
        state = "finished" if self.is_finished(out) else state or "to be run"
        return "\n".join([f"{self.name}: {state}", *(f"  {shlex.join(['smke', *x])}" for x in self.programs(out))])


def make_job(name: str, config: str, overrides: Sequence[str], *, exports: bool = False) -> Job:
    """The job `name` of a config location under `--config.key=value` flags; UserError for keys that there are not."""
    stages = override_stages(load_stages(config), list(overrides))
    *_, last = stages.values()
    several = tuple(stages) if len(stages) > 1 else ()
    return Job(name, config, tuple(overrides), record.flatten(last), several, exports)


def check_config(config: str, overrides: Sequence[str], *, made: Iterable[str] = ()) -> None:
    """Raises UserError for values that no run could work with, and for files of weights that are not there.

    made: files that other jobs make before
    """
    for stage in override_stages(load_stages(config), list(overrides)).values():
        resolve(stage)
        for key, path in start_files(record.flatten(stage)).items():
            if not path.startswith(MARK) and path not in made and not params_path(path).is_file():
                raise UserError(f"{key}: no weights at {path}")


def start_files(fields: Mapping[str, Any]) -> dict[str, str]:
    """{key: file} of the fields of a flattened config that say what a network starts from, but for 'random'."""
    return {key: value for key, value in fields.items() if START.fullmatch(key) and value != RANDOM}


def is_trained(directory: Path) -> bool:
    """Whether the run in `directory` has saved its last step."""
    try:
        total = read_run(directory)["config"]["config.total_steps"]
    except (UserError, KeyError, TypeError):  # none there, or damaged, which `smke train` will say
        return False
    return (directory / "checkpoints" / str(total)).is_dir()
