"""`smke demo`: distil a self-supervised image teacher into a small image-text model, on drawn scenes, in minutes."""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

import smke_jax
from smke_jax.__main__ import run_program
from smke_jax.data.datasets import open_source, scenes
from smke_jax.data.scenes import ceiling
from smke_jax.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES
from smke_jax.errors import UserError
from smke_jax.evaluation.embed import embed_texts, make_encoder
from smke_jax.evaluation.evaluate import Retrieval, evaluate_retrieval
from smke_jax.evaluation.retrieval import chance_recall
from smke_jax.programs import export
from smke_jax.programs.train import load_config
from smke_jax.reporting import examples
from smke_jax.reporting.plots import retrieval_grid
from smke_jax.reporting.report import Recall, RunReport, read_metrics, write_report
from smke_jax.training.experiment import TrainedRun, restore_run
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.state import count_parameters

CONFIGS = Path(smke_jax.__file__).parents[1] / "configs"
TEACHER = Path(smke_jax.__file__).parent / "assets" / "teacher_scenes.safetensors"
RECORDED = Path(smke_jax.__file__).parent / "assets" / "demo_itc_alone.json"
SMALL_TEACHER_STEPS = 300
DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}

# What a user might type, with the attributes (group, value) that make a scene right.
QUERIES = (
    ("a red circle", (("shape_colour", SHAPES.index("circle") * len(COLOURS) + COLOURS.index("red")),)),
    (
        "a green triangle on a black background",
        (
            ("shape_colour", SHAPES.index("triangle") * len(COLOURS) + COLOURS.index("green")),
            ("background", BACKGROUNDS.index("black")),
        ),
    ),
    (
        "a yellow object inside another one",
        (("inside", 0), ("colour", COLOURS.index("yellow"))),
    ),
)


def main(argv: list[str]) -> int:
    """Parses the command line, trains, evaluates and writes the report; returns the exit status."""
    arguments = _parser().parse_args(argv)
    started, workdir = time.perf_counter(), arguments.workdir
    config = _config("scenes.py")
    if arguments.steps:
        config.total_steps = arguments.steps
    teacher = _train_teacher(workdir / "teacher", arguments.teacher_steps) if arguments.train_teacher else TEACHER
    config.teacher.checkpoint = str(teacher)
    if config.student.image.init != "random":
        config.student.image.init = str(teacher)
    outcome = train_and_evaluate(config, workdir / "s_smke")
    if outcome.step < config.total_steps:
        return 0  # stopped by SIGTERM; the loop has said so
    minutes = (time.perf_counter() - started) / 60
    alone = _compare(workdir / "itc_alone", arguments.steps) if arguments.compare else _recorded()
    run = restore_run(workdir / "s_smke")
    result = _retrieve(run)
    report = _report(run, result, alone, minutes, workdir)
    print(_table(report.recalls))
    print(f"S-SMKE took {minutes:.1f} min; report: {write_report(workdir / 'report.html', report).resolve()}")
    return 0


def _config(name: str, variant: str = "") -> ConfigDict:
    """One of the configs that stand beside the package in its repository."""
    path = CONFIGS / name
    if not path.is_file():
        raise UserError(f"no {path}: install from a clone of the repository with `pip install -e .`")
    return load_config(f"{path}:{variant}")


def _train_teacher(workdir: Path, steps: int) -> Path:
    """A small teacher from images alone, remade on the spot."""
    path = workdir / "teacher.safetensors"
    if not path.exists():
        config = _config("teacher_scenes.py")
        config.total_steps = steps
        train_and_evaluate(config, workdir)
        export.main([f"--workdir={workdir}", f"--out={path}"])
    return path


def _compare(workdir: Path, steps: int | None) -> dict:
    """The same student by ITC alone, in the same time: its config has as many more steps as its steps are faster."""
    config = _config("scenes.py", "itc")
    if steps:
        config.total_steps = steps
    started = time.perf_counter()
    metrics = train_and_evaluate(config, workdir).metrics
    return {"metrics": metrics, "note": f"trained on the spot, {(time.perf_counter() - started) / 60:.1f} min"}


def _recorded() -> dict:
    record = json.loads(RECORDED.read_text())
    return {"metrics": record["metrics"], "note": "recorded: " + record["note"]}


def _retrieve(run: TrainedRun) -> Retrieval:
    config, mesh = run.experiment.config, run.experiment.mesh
    source = open_source(config.data, config.eval.split)
    encode = make_encoder(run.experiment.student().run, mesh)
    return evaluate_retrieval(
        encode, run.params["student"], source, run.experiment.tokenizer, config, mesh, dataset="scenes gallery"
    )


def _query(run: TrainedRun, result: Retrieval):
    config, mesh, gallery = run.experiment.config, run.experiment.mesh, scenes().gallery
    encode = make_encoder(run.experiment.student().run, mesh)
    texts = [text for text, _ in QUERIES]
    embeddings = embed_texts(
        encode, run.params["student"], texts, run.experiment.tokenizer, name=f"text/{config.eval.level}",
        max_length=config.data.max_length, batch_size=mesh.size * len(texts), mesh=mesh,
    )  # fmt: skip
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    truth = [np.all([gallery.attributes[group][:, value] for group, value in facts], axis=0) for _, facts in QUERIES]
    return examples.text_queries(texts, embeddings, result, gallery.images.__getitem__, truth)


def _report(run: TrainedRun, result: Retrieval, alone: dict, minutes: float, workdir: Path) -> RunReport:
    gallery, config = scenes().gallery, run.experiment.config
    limit = ceiling(gallery.meanings, gallery.layout)
    image_of = gallery.images.__getitem__
    recalls = [
        Recall("S-SMKE (this run)", result.metrics),
        Recall("ITC alone, same student and time", alone["metrics"], alone["note"]),
        Recall("ceiling of the captions", _as_metrics(limit, "i2t_specific", "t2i"), "exact, by evaluating each "
               "caption's meaning on every scene; no model can know which of several true scenes was meant"),
        Recall("chance", _chance(result.metrics), ""),
    ]  # fmt: skip
    pictures = dict(
        text_to_image=examples.text_to_image(result, image_of, 6),
        image_to_text=examples.image_to_text(result, image_of, 6),
    )
    retrieval_grid(workdir / "retrieval.png", **pictures)
    own = result.metrics
    return RunReport(
        title="smke demo: S-SMKE on drawn scenes",
        summary=[
            f"A frozen teacher that has only ever seen images was distilled into a student of "
            f"{count_parameters(run.params):,} parameters "
            f"in {minutes:.1f} minutes, on {len(scenes().train):,} captioned scenes. The figures are on "
            f"{own['n_images']} scenes it has not seen, with {own['n_captions']} captions.",
            verdict(own, alone["metrics"]),
        ],
        headline=[(f"R@1 {name}", f"{own[key]['r1']:.1f} %") for key, name in DIRECTIONS.items()],
        recalls=recalls,
        metrics_rows=read_metrics(workdir / "s_smke" / "metrics.jsonl"),
        queries=_query(run, result),
        facts={
            "steps": run.step,
            "batch": config.batch_size,
            "minutes": f"{minutes:.1f}",
            "teacher": config.teacher.checkpoint,
            "hardware": f"{jax.device_count()} × {jax.devices()[0].device_kind}, {platform.machine()}",
            "versions": ", ".join(f"{k} {v}" for k, v in run.record["versions"].items()),
        },
        command="smke demo " + " ".join(sys.argv[2:]),
        **pictures,
    )


def verdict(own: dict, alone: dict) -> str:
    """Whether distillation paid, from both runs' figures and the width of their intervals."""
    differences = {name: own[key]["r1"] - alone[key]["r1"] for key, name in DIRECTIONS.items()}
    width = np.mean([np.ptp(m["ci95"][key]["r1"]) / 2 for m in (own, alone) for key in DIRECTIONS])
    shown = ", ".join(f"{name} {d:+.1f} points R@1" for name, d in differences.items())
    mean = float(np.mean(list(differences.values())))
    if abs(mean) <= width:
        return f"Against ITC alone in the same time: {shown}. That is within the noise of one run (about ±{width:.1f})."
    outcome = "helped" if mean > 0 else "cost more than it gave"
    return f"Against ITC alone in the same time: {shown}. Distillation {outcome} here."


def _as_metrics(limit: dict, *prefixes: str) -> dict:
    return {key: {f"r{k}": limit[f"{p}_r@{k}"] for k in (1, 5, 10)} for key, p in zip(DIRECTIONS, prefixes)}


def _chance(metrics: dict) -> dict:
    by_k = {k: chance_recall(metrics["n_images"], metrics["n_captions"] // metrics["n_images"], k) for k in (1, 5, 10)}
    return {key: {f"r{k}": by_k[k][key] for k in by_k} for key in DIRECTIONS}


def _table(recalls) -> str:
    lines = [f"{'R@1 / R@5 / R@10, %':34}" + "".join(f"{name:>22}" for name in DIRECTIONS.values())]
    for recall in recalls:
        cells = (" / ".join(f"{recall.metrics[key][f'r{k}']:.1f}" for k in (1, 5, 10)) for key in DIRECTIONS)
        lines.append(f"{recall.label:34}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("smke demo", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/demo"), help="default: runs/demo; continued if there"
    )
    parser.add_argument("--compare", action="store_true", help="train ITC alone too, instead of its recorded figures")
    parser.add_argument(
        "--train_teacher", action="store_true", help="remake a small teacher instead of the shipped one"
    )
    parser.add_argument("--teacher_steps", type=int, default=SMALL_TEACHER_STEPS, help="steps of that teacher")
    parser.add_argument("--steps", type=int, help="training steps, to try things out in less time")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
