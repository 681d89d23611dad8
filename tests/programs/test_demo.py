"""`smke demo` from end to end, in few steps."""

import importlib
import json
import re

import pytest
from ml_collections import ConfigDict

from smke_jax.__main__ import main
from smke_jax.config_files import load_config
from smke_jax.convert.params_file import load_params, read_description
from smke_jax.data import datasets
from smke_jax.data.scenes import make_scenes
from smke_jax.programs import demo


@pytest.fixture
def in_small(monkeypatch):
    """Encoders of one layer, small batches of few scenes, and AdamW, which compiles in less time than Muon."""
    small, whole = make_scenes(512, 40), demo._config

    def config(*arguments, **options):
        c = whole(*arguments, **options)
        c.batch_size, c.optimizer.name, c.log.report = 16, "adamw", False  # the report of the whole demo is another
        for network in c.networks.values():
            for part in (network.get(name) for name in ("model", "image", "text")):
                if isinstance(part, ConfigDict):
                    part.depth = 1
        return c

    monkeypatch.setattr(demo, "_config", config)
    probe = importlib.import_module("smke_jax.evaluators.scene_probe")  # its room has a function of that name
    for module in (datasets, demo, probe):
        monkeypatch.setattr(module, "scenes", lambda *_: small)


@pytest.mark.slow
def test_demo_remakes_a_teacher_trains_and_reports(tmp_path, capsys, in_small):
    arguments = ["demo", f"--workdir={tmp_path}", "--steps=4", "--train_teacher", "--teacher_steps=2", "--compare"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert re.search(r"S-SMKE \(this run\) +\d", output)
    assert "ITC alone" in output and "chance" in output
    report = (tmp_path / "report.html").read_text()
    for query, _ in demo.QUERIES:
        assert query in report
    for part in ("Loss and its parts", "Logit scales", "ceiling of the captions", "ITC alone", '<svg class="plot"'):
        assert part.lower() in report.lower(), part
    assert "http://" not in report and "https://" not in report
    assert (tmp_path / "retrieval.png").stat().st_size > 10_000
    metrics = json.loads((tmp_path / "s_smke" / "evals" / "4" / "retrieval.json").read_text())
    assert (metrics["n_images"], metrics["n_captions"]) == (40, 200)

    # The same command again finds the finished run and only writes the report anew.
    assert main(arguments[:-1]) == 0  # without --compare
    assert len((tmp_path / "s_smke" / "metrics.jsonl").read_text().splitlines()) <= 3


def test_shipped_teacher_is_small_and_knows_its_origin():
    teacher = demo.RECORDED.with_name("teacher_scenes.safetensors")
    assert teacher.stat().st_size <= 2_000_000
    description = read_description(teacher)
    assert description["model"]["type"] == "data2vec2"
    made_by = description["source"]["config"]
    assert made_by["config.task.type"] == "images", "trained from images alone"
    assert made_by["config.total_steps"] == load_config("configs/teacher_scenes.py").total_steps
    assert load_params(teacher)["cls_token"].shape == (1, 1, description["model"]["width"])


def test_recorded_comparison_names_its_command():
    for record in json.loads(demo.RECORDED.read_text()):
        assert "smke train" in record["note"]
        assert record["metrics"]["n_images"] == 500


@pytest.mark.parametrize(
    ("own", "alone", "said"),
    [(80, 60, "helped"), (60, 80, "cost more than it gave"), (70.5, 70, "within what another gallery")],
)
def test_verdict_says_which_way_it_went(own, alone, said):
    def metrics(r1):
        directions = ("image_to_text", "text_to_image")
        return {**{d: {"r1": r1} for d in directions}, "ci95": {d: {"r1": [r1 - 3, r1 + 3]} for d in directions}}

    assert said in demo.verdict(metrics(own), demo.Recall("ITC alone", metrics(alone), "recorded"))
