"""`smke export`: a run's trained network as a directory for others to use, checked against the original.

Of a self-supervised run it is the encoder without its projector, in the format flax alone: ready as
`config.teacher.checkpoint` (and, of type data2vec2, as `config.student.image.init`) of another run.  Of any other run
it is the whole student.  Images and captions of the run's own data go through both networks; their difference stands
in the export's README.md, and an export that differs too much is not written.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np

from smke_jax.__main__ import run_program
from smke_jax.convert.export import FORMATS
from smke_jax.convert.export.base import DTYPES, Network, Record
from smke_jax.convert.export.card import likeness_lines
from smke_jax.convert.export.check import draw_samples
from smke_jax.convert.export.write import write
from smke_jax.errors import UserError
from smke_jax.programs.evaluate import step_argument
from smke_jax.reporting.metrics_log import read_metrics, training_seconds
from smke_jax.training.experiment import TrainedRun, restore_run, trained_network
from smke_jax.training.state import count_parameters


def main(argv: list[str]) -> int:
    """Parses the command line and writes the directory; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.out.exists():
        raise UserError(f"{arguments.out} is already there: remove it or choose another --out")
    run = restore_run(arguments.workdir, step=None if arguments.step == "latest" else arguments.step)
    network, config = network_of(run, arguments.workdir), run.experiment.config
    image_size = network.description.get("image", network.description)["image_size"]
    samples = draw_samples(config.data, (config.eval.split, config.data.split), image_size)
    likeness = write(arguments.out, network, samples, format=arguments.format, dtype=arguments.dtype)
    print(f"{network.description['type']}, {count_parameters(network.params):,} parameters, step {run.step}")
    print("\n".join(likeness_lines(likeness, samples, arguments.dtype)))
    print(f"wrote {arguments.out}")
    return 0


def network_of(run: TrainedRun, workdir: Path) -> Network:
    """What `run`, restored from `workdir`, is kept for, and its record."""
    params, description = trained_network(run)
    if description["type"] == "student":
        terms = run.params["terms"]
        scales = {name: np.asarray(x["logit_scale"]).tolist() for name, x in terms.items() if "logit_scale" in x}
        description["logit_scales"] = scales
    evaluation = workdir / "evals" / str(run.step) / "retrieval.json"
    record = Record(
        run=run.record,
        config=run.experiment.config.to_dict(),
        step=run.step,
        retrieval=json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.is_file() else None,
        hours=_hours(workdir / "metrics.jsonl", run.step, run.experiment.config.batch_size),
    )
    return Network(jax.device_get(params), description, run.experiment.tokenizer, record)


def _hours(metrics: Path, step: int, batch_size: int) -> float | None:
    """What the steps up to `step` took, by the examples per second that were logged."""
    rows = read_metrics(metrics) if metrics.is_file() else []
    seconds = training_seconds([row for row in rows if row.get("step", 0) <= step], batch_size)
    return float(seconds.sum()) / 3600 if len(seconds) else None


def _parser() -> argparse.ArgumentParser:
    summary, _, more = __doc__.partition("\n\n")
    formats = "\n".join(f"  {name:8} {form.summary}" for name, form in FORMATS.items())
    parser = argparse.ArgumentParser(
        "smke export", description=summary, epilog=f"{more}\nformats:\n{formats}", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--workdir", type=Path, required=True, help="run directory of `smke train`")
    parser.add_argument("--step", type=step_argument, default="latest", metavar="N|best|latest", help="default: latest")
    parser.add_argument("--format", choices=FORMATS, default="flax", help="default: flax")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights; default: float32")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
