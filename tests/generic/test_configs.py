"""Every file in configs/: it says what it is and how to run it, trains two steps, and refuses what it does not know."""

import json
import math
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import smke_jax.evaluators.scene_probe
from smke_jax.config import base
from smke_jax.config_files import load_config, load_rungs, load_stages
from smke_jax.data import datasets
from smke_jax.data.scenes import make_scenes
from smke_jax.errors import UserError
from smke_jax.forms import FORMS
from smke_jax.parts import part
from smke_jax.studies.ladder.recipes import find_recipes
from smke_jax.training.build import build_experiment, resolve
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.record import flatten

FILES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.py"))
SCENES = make_scenes(96, 16)
SECTIONS = ("networks", "selections", "terms", "assets", "evaluators")

each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def variants(path: Path) -> tuple[str, ...]:
    """The variants that its `get_config` knows besides the forms."""
    found = re.search(r"there are (.*), alone or with a form", refusal(path))
    return tuple(found.group(1).split(", ")) if found else ()


def refusal(path: Path) -> str:
    with pytest.raises(UserError, match="unknown variant 'nothing'") as refused:
        load_config(f"{path}:nothing")
    return str(refused.value)


@each
def test_it_begins_with_what_it_is_and_its_exact_command(path):
    lines = path.read_text().split('"""')[1].splitlines()
    assert len(lines[0]) > 20 and lines[0].endswith((".", ":")) and lines[1] == "", "a one-line summary comes first"
    commands = [line for line in lines if line.strip().startswith("smke ")]
    assert all(line.startswith("    smke ") for line in commands)
    train = f"smke train --config=configs/{path.name}"
    assert [c for c in commands if c.strip().startswith((train, "smke demo"))]


@each
def test_the_flags_that_its_text_names_exist(path):
    text = path.read_text().split('"""')[1]
    stages = load_stages(str(path))
    known = {key for config in stages.values() for key in flatten(config)}
    known |= {f"config.{stage}.{key.partition('.')[2]}" for stage, c in stages.items() if stage for key in flatten(c)}
    assert set(re.findall(r"--(config\.[\w.]+)=", text)) <= known


@each
def test_every_stage_is_made_of_base_and_whole_parts(path):
    for config in load_stages(str(path)).values():
        assert set(config) == set(base()) and config.terms and config.batch_size % 8 == 0
        assert bool(config.total_steps) != bool(config.epochs)
        for section in SECTIONS:
            for name, given in config[section].items():
                fields = {key: value for key, value in given.items() if key not in ("type", "weight", "final_weight")}
                known = part(given.get("type", name), **fields)
                assert set(fields) == set(known) - {"type", "weight", "final_weight"}, f"{section}.{name}"


@each
def test_unknown_keys_are_rejected(path):
    config = load_config(str(path))
    network = next(iter(config.networks.values()))
    for owner, key in ((config, "bach_size"), (config.task, "dta"), (config.optimizer, "lr"), (network, "dpeth")):
        assert isinstance(owner, ConfigDict)
        with pytest.raises((AttributeError, KeyError), match=key):
            setattr(owner, key, 1)


@pytest.mark.slow
@each
def test_its_smoke_form_takes_two_steps(path, tmp_path, monkeypatch):
    for module in (datasets, smke_jax.evaluators.scene_probe):
        monkeypatch.setattr(module, "scenes", lambda: SCENES)
    config = load_config(f"{path}:smoke")
    assert config.total_steps == 2
    config.num_devices = 2
    outcome = train_and_evaluate(config, tmp_path)
    assert outcome.step == 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == [1, 2] and all(map(math.isfinite, losses.values()))
    assert (tmp_path / "checkpoints" / "2").is_dir()
    for name in outcome.figures:
        assert (tmp_path / "evals" / "2" / f"{name}.json").is_file()


@each
def test_every_variant_and_form_can_be_built(path):
    for variant in variants(path):
        assert load_config(f"{path}:{variant},smoke").total_steps == 2
    for variant in ("", *variants(path)):
        for form in FORMS:
            location = f"{path}:{','.join(filter(None, (variant, form)))}" if variant or form else str(path)
            for config in load_stages(location).values():
                built(config)


def built(config: ConfigDict) -> None:
    """Builds the records of a config without its files."""
    for network in config.networks.values():
        for field in ("start", "image_start", "text_start"):
            if field in network:
                network[field] = "random"
        if network.type == "frozen" and network.model is None:
            with network.unlocked():
                network.model = part("beit")
    config.num_devices = 1
    experiment = build_experiment(resolve(config), None, {"vocab_size": 300, "num_images": 96})
    assert set(experiment.shapes.networks) <= set(config.networks)


def test_variants_are_refused_by_name():
    path = FILES[0].parent / "token_types.py"
    for wrong in ("beside", "before,flickr30k", "smoke,before", "none,before"):
        with pytest.raises(UserError, match="unknown variant .* none, before, after, after_scaled"):
            load_config(f"{path}:{wrong}")
    assert variants(path) == ("none", "before", "after", "after_scaled")


def test_rungs_make_one_ladder():
    recipes = find_recipes(FILES[0].parent)
    assert "s_smke" in [recipe.name for recipe in recipes]
    assert len({recipe.rung.order for recipe in recipes}) == len(recipes)
    for path in FILES:
        assert {rung.variant for rung in load_rungs(str(path))} <= {"", *variants(path)}


def test_s_smke_without_its_weights_names_the_file_it_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(f"{FILES[0].parent / 's_smke.py'}")
    with pytest.raises(UserError, match="no weights at weights/.*: give what `smke convert`"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_s_smke_describes_the_thesis():
    c = load_config(str(FILES[0].parent / "s_smke.py"))
    assert (c.batch_size, c.total_steps, c.terms.target_itc.bank_size) == (512, 44_636, 65_536)
    assert (c.optimizer.name, c.optimizer.betas, c.optimizer.eps, c.optimizer.weight_decay, c.optimizer.clip_norm) == (
        "adamw", (0.9, 0.98), 1e-6, 0.01, 0.0,
    )  # fmt: skip
    assert not c.networks.teacher.final_norm and c.task.crop_scale == (0.9, 1.0) and c.task.max_length == 64
    assert c.task.unit == "pairs"
