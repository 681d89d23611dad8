"""`smke export`: a run's trained network as one safetensors file that says what it holds.

Of a self-supervised run it is the encoder without its projector, ready as `config.teacher.checkpoint` (and, of type
data2vec2, as `config.student.image.init`) of another run; of any other run it is the whole student.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax

from smke_jax.__main__ import run_program
from smke_jax.convert.params_file import save_params
from smke_jax.errors import UserError
from smke_jax.models.teachers import TEACHERS
from smke_jax.programs.evaluate import step_argument
from smke_jax.training.experiment import TrainedRun, restore_run
from smke_jax.training.state import count_parameters


def main(argv: list[str]) -> int:
    """Parses the command line and writes the file; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.out.suffix != ".safetensors":
        raise UserError(f"--out={arguments.out}: give a file name that ends in .safetensors")
    if arguments.out.exists():
        raise UserError(f"{arguments.out} is already there: remove it or choose another --out")
    run = restore_run(arguments.workdir, step=None if arguments.step == "latest" else arguments.step)
    params, model = trained_network(run)
    source = {
        "steps": run.step,
        "command": run.record["command"],
        "data": run.record["identity"]["data"],
        "config": run.record["config"],
    }
    try:
        save_params(arguments.out, jax.device_get(params), {"model": model, "source": source})
    except OSError as error:
        raise UserError(f"cannot write {arguments.out}: {error.strerror}") from None
    print(f"{model['type']}, {count_parameters(params):,} parameters, step {run.step}\nwrote {arguments.out}")
    return 0


def trained_network(run: TrainedRun) -> tuple[Any, dict]:
    """(its parameters, the description of the model they belong to)."""
    config = run.experiment.config
    if "views" in run.params:
        fields = TEACHERS[config.teacher.type].__dataclass_fields__
        model = {k: v for k, v in config.teacher.items() if k == "type" or k in fields}
        return run.params["views"]["encoder"], model
    run.experiment.student()  # a run without either says so
    student = run.params["student"]
    sizes = {"vocab_size": run.experiment.tokenizer.vocab_size, "target_dim": student["head"]["bias"].shape[0]}
    return student, {"type": "student", **sizes, **config.student.to_dict()}


def _parser() -> argparse.ArgumentParser:
    summary, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser("smke export", description=summary, epilog=more, allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, required=True, help="run directory of `smke train`")
    parser.add_argument("--step", type=step_argument, default="latest", metavar="N|best|latest", help="default: latest")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="file to write")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
