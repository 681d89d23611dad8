"""`smke evaluate`: retrieval figures of a run, or attribute probes of a self-supervised run on the drawn scenes.

The run's teacher and training data are not needed.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from smke_jax.__main__ import run_program
from smke_jax.data.datasets import open_source
from smke_jax.errors import UserError
from smke_jax.evaluators.embed import make_encoder
from smke_jax.evaluators.evaluate import evaluate_retrieval
from smke_jax.evaluators.ranks import Ranks, write_ranks
from smke_jax.evaluators.recalls import format_table, write_json
from smke_jax.evaluators.scene_probe import probe_encoder
from smke_jax.passes.student import LEVELS
from smke_jax.training.experiment import TrainedRun, restore_run


def main(argv: list[str]) -> int:
    """Parses the command line, evaluates and writes; returns the exit status."""
    arguments = _parser().parse_args(argv)
    run = restore_run(arguments.workdir, step=None if arguments.step == "latest" else arguments.step)
    if "views" in run.params:
        return _probe(run, arguments)
    config = run.experiment.config
    trained_with = config.copy_and_resolve_references()
    if arguments.data:
        config.data.update(source="prepared", dir=str(arguments.data))
    config.eval.update(split=arguments.split or config.eval.split, level=arguments.level or config.eval.level)

    source, mesh = open_source(config.data, config.eval.split), run.experiment.mesh
    result = evaluate_retrieval(
        make_encoder(run.experiment.student().run, mesh), run.params["student"], source, run.experiment.tokenizer,
        config, mesh, dataset=f"{source.dataset} {config.eval.split}",
    )  # fmt: skip
    print(f"step {run.step}\n{format_table(result.metrics)}")
    kept = arguments.workdir / "evals" / str(run.step) / _file_name(trained_with, config)
    _write(kept.with_suffix(".npz"), result.ranks, write_ranks)
    for path in (kept, arguments.out):
        if path is not None:
            _write(path, result.metrics)
    return 0


def _probe(run: TrainedRun, arguments) -> int:
    """Linear probes of an encoder that was trained on the scenes."""
    config, mesh = run.experiment.config, run.experiment.mesh
    if config.data.source != "scenes":
        raise UserError(f"{arguments.workdir} trained an encoder on photos: probes exist for the drawn scenes only")
    (views,) = (p for p in run.experiment.recipe.passes if p.name == "views")
    metrics = probe_encoder(
        make_encoder(views.run, mesh), run.params["views"], image_size=config.teacher.image_size,
        batch_size=-(-config.eval.batch_size // mesh.size) * mesh.size, mesh=mesh,
    )  # fmt: skip
    print(f"step {run.step}\n{metrics['protocol']}; effective rank {metrics['effective_rank']:.1f}")
    print("\n".join(f"  {name:14}{value:.3f}" for name, value in metrics["auc"].items()))
    for path in (arguments.workdir / "evals" / str(run.step) / "scene_probe.json", arguments.out):
        if path is not None:
            _write(path, metrics)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("smke evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, required=True, help="run directory of `smke train`")
    parser.add_argument("--data", type=Path, help="folder written by `smke prepare` (default: the run's own)")
    parser.add_argument("--split", help="default: the run's config.eval.split")
    parser.add_argument("--step", type=step_argument, default="latest", metavar="N|best|latest", help="default: latest")
    parser.add_argument("--level", choices=LEVELS, help="representation to compare (default: the run's)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures there too, as JSON")
    return parser


def step_argument(text: str) -> int | str:
    """For --step: a number, 'best', or 'latest'."""
    if text in ("best", "latest"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a step number nor best or latest")
    return int(text)


def _file_name(trained_with, config) -> str:
    """retrieval.json for the run's own evaluation; every departure from it stands in the name."""
    parts = ["retrieval"]
    places = [(data.source, Path(data.dir).resolve()) for data in (config.data, trained_with.data)]
    if places[0] != places[1]:
        parts.append(Path(config.data.dir).name)
    parts += [config.eval[key] for key in ("split", "level") if config.eval[key] != trained_with.eval[key]]
    return "-".join(parts) + ".json"


def _write(path: Path, figures: dict | Ranks, write: Callable = write_json) -> None:
    try:
        write(path, figures)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; the figures stand above") from None
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
