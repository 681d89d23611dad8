"""`smke demo`: the work behind smke_jax/flags/demo.py, which says what it does."""

import contextlib
import json
import platform
import shutil
import sys
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

import smke_jax
from smke_jax import atomic
from smke_jax.__main__ import run_program
from smke_jax.config_files import load_config, shipped_configs
from smke_jax.data.datasets import scenes
from smke_jax.data.scenes import ceiling
from smke_jax.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES
from smke_jax.embedder import Embedder
from smke_jax.evaluators.examples import image_to_text, text_to_image
from smke_jax.evaluators.recalls import chance_recall
from smke_jax.evaluators.retrieval import Retrieval, retrieve
from smke_jax.flags.demo import parser
from smke_jax.reporting import examples
from smke_jax.reporting.plots import retrieval_grid
from smke_jax.reporting.report import Recall, RunReport, read_metrics, write_report
from smke_jax.training.export import export_run
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.restore import TrainedRun, exported, restore_run
from smke_jax.training.stages import EXPORT
from smke_jax.training.state import count_parameters

RECORDED = Path(smke_jax.__file__).parent / "shipped" / "demo_itc_alone.json"  # fields of Recall
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
    arguments = parser().parse_args(argv)
    workdir, clock = arguments.workdir, Clock(arguments.workdir / "seconds.json")
    config = _config("scenes", steps=arguments.steps)
    if arguments.train_teacher:
        with clock.running("teacher"):
            teacher = _train_teacher(workdir / "teacher", arguments.teacher_steps)
        config.networks.teacher.start = config.networks.student.image_start = str(teacher)
    with clock.running("s_smke"):
        run = _train(config, workdir / "s_smke")
    result = _retrieve(run)
    if arguments.compare:
        alone = _compare(workdir / "itc_alone", arguments.steps, clock)
    else:
        alone = [Recall(**record) for record in json.loads(RECORDED.read_text())]
    report = _report(run, result, alone, clock, workdir, " ".join(["smke demo", *argv]))
    path = write_report(workdir / "report.html", report).resolve()
    print(f"{_table(report.recalls)}\nS-SMKE took {clock.minutes('s_smke'):.1f} min; report: {path}")
    return 0


class Clock:
    """Seconds that each part has taken over all the times the demo was started."""

    def __init__(self, path: Path):
        self._path = path
        self._seconds = json.loads(path.read_text()) if path.exists() else {}

    @contextlib.contextmanager
    def running(self, part: str):
        """Adds the time inside, unless it is only that of finding the part already done."""
        started = time.perf_counter()
        before = self._seconds.get(f"{part} done", False)
        try:
            yield
            self._seconds[f"{part} done"] = True
        finally:
            if not before:
                self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - started
                atomic.write_text(self._path, json.dumps(self._seconds) + "\n")

    def minutes(self, part: str) -> float:
        return self._seconds[part] / 60


def _config(name: str, variant: str = "", steps: int | None = None) -> ConfigDict:
    """One of the configs that came with the package, for other `steps` where they are given."""
    config = load_config(f"{shipped_configs()[name]}:{variant}")
    config.total_steps = steps or config.total_steps
    return config


def _train(config: ConfigDict, workdir: Path) -> TrainedRun:
    """The run in `workdir`, trained to its end; SIGTERM or Ctrl-C ends the demo, and its command continues it."""
    outcome = train_and_evaluate(config, workdir)
    if outcome.step < config.total_steps:
        sys.exit(0)
    return restore_run(workdir)


def _train_teacher(workdir: Path, steps: int) -> Path:
    """A small teacher from images alone, remade on the spot."""
    _train(_config("teacher_scenes", steps=steps), workdir)
    path = workdir / EXPORT
    shutil.rmtree(path, ignore_errors=True)
    export_run(workdir, path)
    return path


def _compare(workdir: Path, steps: int | None, clock: Clock) -> list[Recall]:
    """The same student by ITC alone, on the spot; its config takes more steps, as each is faster."""
    with clock.running("itc_alone"):
        run = _train(_config("scenes", "itc", steps), workdir)
    return [Recall("ITC alone", _retrieve(run).metrics, f"trained on the spot in {clock.minutes('itc_alone'):.1f} min")]


def _retrieve(run: TrainedRun) -> Retrieval:
    evaluator = run.config["evaluators"]["retrieval"]
    return retrieve(run.encoder(), run.experiment.task.split(evaluator["split"]), evaluator["level"])


def _query(run: TrainedRun, result: Retrieval):
    gallery, texts = scenes().gallery, [text for text, _ in QUERIES]
    params, description = exported(run)
    embeddings = Embedder(description, params, run.experiment.task.tokenizer).encode_texts(texts)
    truth = [np.all([gallery.attributes[group][:, value] for group, value in facts], axis=0) for _, facts in QUERIES]
    return examples.text_queries(texts, embeddings, result, gallery.images.__getitem__, truth)


def _report(
    run: TrainedRun, result: Retrieval, alone: list[Recall], clock: Clock, workdir: Path, command: str
) -> RunReport:
    gallery, config = scenes().gallery, run.config
    limit = ceiling(gallery.meanings, gallery.layout)
    image_of = gallery.images.__getitem__
    recalls = [
        Recall("S-SMKE (this run)", result.metrics),
        *alone,
        Recall("ceiling of the captions", _as_metrics(limit, "i2t_specific", "t2i"), "exact, by evaluating each "
               "caption's meaning on every scene; no model can know which of several true scenes was meant"),
        Recall("chance", _chance(result.metrics), ""),
    ]  # fmt: skip
    pictures = dict(
        text_to_image=text_to_image(result, image_of, 6),
        image_to_text=image_to_text(result, image_of, 6),
    )
    retrieval_grid(workdir / "retrieval.png", **pictures)
    own, minutes = result.metrics, clock.minutes("s_smke")
    return RunReport(
        title="smke demo: S-SMKE on drawn scenes",
        summary=[
            f"A frozen teacher that has only ever seen images was distilled into a student of "
            f"{count_parameters(run.params):,} parameters "
            f"in {minutes:.1f} minutes, on {len(scenes().train):,} captioned scenes. The figures are on "
            f"{own['n_images']} scenes it has not seen, with {own['n_captions']} captions.",
            verdict(own, alone[0]),
        ],
        headline=[(f"R@1 {name}", f"{own[key]['r1']:.1f} %") for key, name in DIRECTIONS.items()],
        recalls=recalls,
        metrics_rows=read_metrics(workdir / "s_smke" / "metrics.jsonl"),
        queries=_query(run, result),
        facts={
            "steps": run.step,
            "batch": config["batch_size"],
            "minutes": f"{minutes:.1f}",
            "teacher": config["networks"]["teacher"]["start"],
            "hardware": f"{jax.device_count()} × {jax.devices()[0].device_kind}, {platform.machine()}",
            "versions": ", ".join(f"{k} {v}" for k, v in run.record["versions"].items()),
        },
        command=command,
        **pictures,
    )


def verdict(own: dict, alone: Recall) -> str:
    """Whether the teacher paid, from both runs' figures and the sampling error of the gallery."""
    differences = {name: own[key]["r1"] - alone.metrics[key]["r1"] for key, name in DIRECTIONS.items()}
    widths = [np.ptp(metrics["ci95"][key]["r1"]) / 2 for metrics in (own, alone.metrics) for key in DIRECTIONS]
    width = float(np.sqrt(2) * np.mean(widths))
    shown = ", ".join(f"{name} {d:+.1f} points R@1" for name, d in differences.items())
    mean = float(np.mean(list(differences.values())))
    said = f"Against {alone.label} ({alone.note}): {shown}."
    if abs(mean) <= width:
        return f"{said} That is within what another gallery would change (about ±{width:.1f})."
    return f"{said} The teacher {'helped' if mean > 0 else 'cost more than it gave'} here."


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


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv[1:]))
