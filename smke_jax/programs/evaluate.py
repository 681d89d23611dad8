"""`smke evaluate`: the work behind smke_jax/flags/evaluate.py, which says what it does."""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smke_jax.__main__ import run_program
from smke_jax.config_files import override, override_key
from smke_jax.errors import UserError, nearest
from smke_jax.evaluators import EVALUATORS
from smke_jax.flags.evaluate import parser
from smke_jax.parts import part
from smke_jax.programs.evaluate_encoders import ENCODERS, evaluate_encoders
from smke_jax.programs.evaluate_model import evaluate_model, holds_no_run
from smke_jax.tasks.base import Task
from smke_jax.training import record
from smke_jax.training.build import build_part
from smke_jax.training.evaluation import copy_figures, write_figures
from smke_jax.training.record import flatten
from smke_jax.training.restore import TrainedRun, restore_run
from smke_jax.training.validation import validate

SHORT = ("split", "level")  # fields of evaluators that have flags of their own


def main(argv: list[str]) -> int:
    """Parses the command line, evaluates and writes; returns the exit status."""
    arguments = parser().parse_args(argv)
    if holds_no_run(arguments.workdir):
        return evaluate_model(arguments)
    config = record.read_config(arguments.workdir)
    if arguments.evaluator == ENCODERS and ENCODERS not in config.evaluators:
        return evaluate_encoders(arguments)
    config = _with_evaluator(config, arguments.evaluator)
    names = _chosen(config, arguments)
    changed = _changed(config, names, arguments)
    evaluators = {name: build_part("evaluators", name, changed.evaluators[name]) for name in names}
    evaluators = {name: evaluator for name, evaluator in evaluators.items() if evaluator.split}
    if not evaluators:
        raise UserError(f"the evaluators {', '.join(names)} of this run have no split: give one by --split")
    run = restore_run(arguments.workdir, step=arguments.step)
    if arguments.data and not _is_of_evaluator(changed, arguments):
        run = run._replace(experiment=run.experiment._replace(task=_task_on(run, changed.task)))
    print(f"step {run.step}")
    for name, evaluator in evaluators.items():
        figures = run.evaluate(evaluator)
        print(figures.summary)
        written = write_figures(run.workdir / "evals" / str(run.step) / _file_name(name, config, changed), figures)
        if arguments.out:
            written.append(copy_figures(written[-1], arguments.out))
        print("\n".join(f"wrote {path}" for path in written))
    return 0


def _with_evaluator(config: ConfigDict, name: str | None) -> ConfigDict:
    """`config` with the evaluator `name` at its defaults, where the run has none of that name."""
    if name in EVALUATORS and name not in config.evaluators:
        config = ConfigDict(config.to_dict())
        config.evaluators[name] = part(name)
    return config


def _chosen(config: ConfigDict, arguments: argparse.Namespace) -> list[str]:
    """The names of the evaluators that are asked for."""
    known = list(config.evaluators)
    if not known:
        raise UserError(f"the run in {arguments.workdir} has no evaluators: its config names none in config.evaluators")
    if arguments.evaluator is not None and arguments.evaluator not in known:
        raise UserError(
            f"the run in {arguments.workdir} has no evaluator {arguments.evaluator!r} among {', '.join(known)}"
            f"{nearest(arguments.evaluator, [*known, *EVALUATORS])}"
        )
    names = [arguments.evaluator] if arguments.evaluator else known
    if arguments.out and len(names) > 1:
        raise UserError(f"--out is for the figures of one evaluator: choose by --evaluator one of {', '.join(names)}")
    return names


def _changed(config: ConfigDict, names: Iterable[str], arguments: argparse.Namespace) -> ConfigDict:
    """`config` with what the command line changes of the evaluators `names` and of the data."""
    for argument in arguments.overrides:
        if not override_key(argument).startswith("config.evaluators."):
            raise UserError(f"{override_key(argument)} cannot be changed after training: only config.evaluators.… can")
    config = override(config.copy_and_resolve_references(), arguments.overrides)
    for field in SHORT:
        value = getattr(arguments, field)
        having = [name for name in names if field in config.evaluators[name]]
        if value is not None and not having:
            raise UserError(f"--{field}: none of the evaluators {', '.join(names)} has a {field}; leave it out")
        if value is not None:
            for name in having:
                config.evaluators[name][field] = value
    if arguments.data and _is_of_evaluator(config, arguments):
        config.evaluators[arguments.evaluator].data = str(arguments.data)
    elif arguments.data:
        if "data" not in config.task:
            raise UserError(f"--data: the task {config.task.type} reads no prepared folder; leave it out")
        folder = str(arguments.data)
        of_files = {"source": "prepared", "files": "glue", "weights": (), "caps": ()}
        config.task.data = folder if isinstance(config.task.data, str) else (folder,)
        config.task.update({field: value for field, value in of_files.items() if field in config.task})
    validate(flatten(config))
    return config


def _is_of_evaluator(config: ConfigDict, arguments: argparse.Namespace) -> bool:
    """Whether --data is for the evaluator that is asked for, which has data of its own."""
    return arguments.evaluator is not None and "data" in config.evaluators[arguments.evaluator]


def _task_on(run: TrainedRun, part: ConfigDict) -> Task:
    """The task that `part` describes, with the vocabulary and the sizes of images of `run`."""
    draft = build_part("task", "", part, keep=run.workdir, known=run.record["facts"])
    networks = run.experiment.recipe.networks.values()
    return draft.finish({array: size for network in networks for array, size in network.sizes.items()})


def _file_name(name: str, config: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    """The evaluator's name for the run's own evaluation; every departure from it stands behind the name."""
    parts = [name]
    if "data" in config.task and _places(config.task) != _places(changed.task):
        parts.append(_places(changed.task)[1].name)
    own, before = changed.evaluators[name], config.evaluators[name]
    departing = [field for field in own if own[field] != before[field]]
    parts += [str(own[field]) for field in SHORT if field in departing]
    parts += [f"{field}={own[field]}" for field in departing if field not in SHORT]
    return re.sub(r"[^\w.,=+-]+", "_", "-".join(parts))


def _places(task: Mapping[str, Any]) -> tuple:
    folders = (task.data,) if isinstance(task.data, str) else task.data
    return task.get("source", task.get("files")), *(Path(folder).resolve() for folder in folders)


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
