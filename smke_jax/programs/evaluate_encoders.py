"""`smke evaluate --evaluator=encoders`: the encoders of a run by themselves, beside what they began with."""

import argparse

from smke_jax.errors import UserError
from smke_jax.studies.encoders.compare import compare_encoders
from smke_jax.training.evaluation import copy_figures, write_figures
from smke_jax.training.restore import restore_run

ENCODERS = "encoders"
OF_EVALUATORS = ("split", "level")  # flags that say nothing here


def evaluate_encoders(arguments: argparse.Namespace) -> int:
    """Prints the table of all encoders on the tasks in --data, and keeps it with the run."""
    if given := [f"--{name}" for name in OF_EVALUATORS if getattr(arguments, name) is not None] + arguments.overrides:
        raise UserError(f"{given[0]} says nothing to --evaluator={ENCODERS}: leave it out")
    if arguments.data is None:
        raise UserError(f"--evaluator={ENCODERS} needs --data: a folder with folders of tasks, such as CoLA and RTE")
    data = arguments.data.resolve()  # '.' has a name, too
    if not data.is_dir():
        raise UserError(f"--data: there is no folder {arguments.data}")
    run = restore_run(arguments.workdir, step=arguments.step)
    print(f"step {run.step}")
    figures = compare_encoders(run, data)
    print(figures.summary)
    written = write_figures(run.workdir / "evals" / str(run.step) / f"{ENCODERS}-{data.name}", figures)
    if arguments.out:
        written.append(copy_figures(written[-1], arguments.out))
    print("\n".join(f"wrote {path}" for path in written))
    return 0
