"""Recipes of several stages: each is a run of its own, and a later one begins with the export of an earlier one."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from smke_jax.errors import UserError, nearest
from smke_jax.training.checkpoint import Checkpointer
from smke_jax.training.export import export_run
from smke_jax.training.loop import Outcome, train_and_evaluate
from smke_jax.training.record import read_config

log = logging.getLogger("smke_jax")

MARK = "stage:"  # 'stage:NAME' in a config is the export of the stage NAME
EXPORT = "export"  # the folder of a stage's run where its export lies
NONE = -1  # no step


class Finished(NamedTuple):
    """How the last stage that was trained ended.

    whole: whether it was trained to its end; otherwise a SIGTERM or Ctrl-C stopped it
    """

    stage: str
    workdir: Path
    outcome: Outcome
    whole: bool


def train_stages(stages: Mapping[str, ConfigDict], workdir: str | Path) -> Finished:
    """Trains the `stages` in order, each in `stage_folder`, continuing what is there.

    It returns early after a SIGTERM or Ctrl-C.  Of every stage but the last the export is written beside its run,
    unless it is there: of the best checkpoint where an evaluator of the stage ranks them.
    Raises UserError for what the user can mend.
    """
    workdir = Path(workdir)
    if len(stages) > 1 and (workdir / "run.json").exists():
        names = ", ".join(stages)
        raise UserError(f"{workdir} holds a run, and this config has the stages {names}: give another --workdir")
    configs = {name: with_stages(config, _earlier(stages, name), workdir) for name, config in stages.items()}
    for name, config in configs.items():
        folder = stage_folder(name, workdir)
        if len(configs) > 1:
            log.info("stage %s, in %s", name, folder)
        outcome = train_and_evaluate(config, folder)
        whole = outcome.step >= read_config(folder).total_steps
        if not whole or name == list(configs)[-1]:
            return Finished(name, folder, outcome, whole)
        del outcome  # the next stage needs the memory of its parameters
        _export(folder)
    raise UserError("there is no stage to train")


def stage_folder(name: str, workdir: Path) -> Path:
    """Where a stage lies: WORKDIR of '', WORKDIR/NAME, or NAME where that is a path, shared by all that name it."""
    return Path(name) if "/" in name else workdir / name


def with_stages(config: ConfigDict, earlier: Mapping[str, Any], workdir: Path) -> ConfigDict:
    """A copy of `config` with 'stage:NAME' replaced by the folder of that stage's export, NAME being in `earlier`."""

    def place(key: str, value: str) -> str:
        name = value.removeprefix(MARK)
        if name not in earlier:
            known = f"{', '.join(earlier)} alone{nearest(name, list(earlier))}" if earlier else "none"
            raise UserError(
                f"{key} is {value!r}, and of the stages before it there is {known}; or give the folder of an export"
            )
        return str(stage_folder(name, workdir) / EXPORT)

    def replaced(key: str, value: Any) -> Any:
        if isinstance(value, str) and value.startswith(MARK):
            return place(key, value)
        return tuple(replaced(key, x) for x in value) if isinstance(value, tuple) else value

    def walk(part: ConfigDict, key: str) -> None:
        for field, value in part.items():
            if isinstance(value, ConfigDict):
                walk(value, f"{key}.{field}")
            else:
                part[field] = replaced(f"{key}.{field}", value)

    config = config.copy_and_resolve_references()
    walk(config, "config")
    return config


def _earlier(stages: Mapping[str, Any], name: str) -> dict[str, Any]:
    names = list(stages)
    return {earlier: stages[earlier] for earlier in names[: names.index(name)]}


def _export(folder: Path) -> None:
    """Writes the export of a finished run beside it, unless it is there.

    It is of the best checkpoint where an evaluator ranks them, else of the newest.
    """
    out = folder / EXPORT
    with Checkpointer(folder / "checkpoints", read_only=True) as checkpoints:
        best = checkpoints.best_step()
    # Process 0 decides for all: elsewhere a shared folder may show an older state.
    there, best = multihost_utils.broadcast_one_to_all(np.array([out.exists(), NONE if best is None else best]))
    if not there:
        export_run(folder, out, step=None if best == NONE else int(best))
        log.info("wrote %s, of %s", out, "the newest checkpoint" if best == NONE else f"step {best}, the best one")
