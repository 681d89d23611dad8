"""Every file in configs/: it says what it is and how to run it, trains two steps, and refuses what it does not know."""

import importlib.util
import json
import math
import re
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict
from smke_jax.training.experiment import batch_shapes, resolve, training_views

from smke_jax.config import FORMS, base
from smke_jax.data import datasets
from smke_jax.data.scenes import make_scenes
from smke_jax.errors import UserError
from smke_jax.programs.ladder import find_recipes
from smke_jax.programs.train import load_config
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.recipe import build_recipe, init_params
from smke_jax.training.record import flatten

FILES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.py"))
SCENES = make_scenes(96, 16)


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keys(config, prefix="") -> set[str]:
    nested = {k: v for k, v in config.items() if isinstance(v, ConfigDict)}
    inner = set().union(*(keys(v, f"{prefix}{k}.") for k, v in nested.items()))
    return {prefix + k for k in config} | inner


each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_there_are_configs():
    assert {"flickr8k", "s_smke"} <= {path.stem for path in FILES}


@each
def test_it_begins_with_what_it_is_and_its_exact_command(path):
    lines = load(path).__doc__.splitlines()
    assert len(lines[0]) > 20 and lines[0].endswith((".", ":")) and lines[1] == "", "a one-line summary comes first"
    commands = [line.strip() for line in lines if line.strip().startswith("smke ")]
    assert all(line.startswith("    smke ") for line in lines if line.strip().startswith("smke "))
    assert [c for c in commands if c.startswith((f"smke train --config=configs/{path.name} --workdir=", "smke demo"))]


@each
def test_the_flags_that_it_names_exist(path):
    module = load(path)
    named = set(re.findall(r"--(config\.[\w.]+)=", module.__doc__))
    assert named <= set(flatten(module.get_config()))


@each
def test_it_has_the_fields_of_base_and_no_others(path):
    config = load(path).get_config()
    own = {key for key in keys(config) if not key.startswith("terms.")}
    assert own == {key for key in keys(base()) if not key.startswith("terms.")}
    assert config.terms and config.batch_size % 8 == 0
    assert bool(config.total_steps) != bool(config.epochs)


@each
def test_unknown_keys_are_rejected(path):
    config = load(path).get_config()
    for part, key in ((config, "bach_size"), (config.student.image, "patchsize"), (config.optimizer, "lr")):
        with pytest.raises((AttributeError, KeyError), match=key):
            setattr(part, key, 1)
        with pytest.raises((AttributeError, KeyError), match=key):
            part.update({key: 1})


@pytest.mark.slow
@each
def test_its_smoke_variant_takes_two_steps(path, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "scenes", lambda: SCENES)
    config = load(path).get_config("smoke")
    assert config.total_steps == 2
    config.num_devices = 2
    outcome = train_and_evaluate(config, tmp_path)
    assert outcome.step == 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == [1, 2] and all(map(math.isfinite, losses.values()))
    assert (tmp_path / "checkpoints" / "2").is_dir()
    if "student" in config.passes:
        assert outcome.metrics["n_images"] == 16
        assert (tmp_path / "evals" / "2" / "retrieval.json").is_file()


VARIANTS = [(path, kind) for path in FILES for kind in getattr(load(path), "VARIANTS", ())]


@pytest.mark.parametrize(("path", "kind"), VARIANTS, ids=lambda x: x if isinstance(x, str) else x.stem)
@pytest.mark.parametrize("form", FORMS)
def test_its_other_variants_can_be_built(path, kind, form):
    config = load(path).get_config(f"{kind},{form}")
    config.teacher.checkpoint = "random" if "teacher" in config.passes else ""
    config.teacher.update(width=192, num_heads=3)  # what the file that it stands for would say
    config.student.init = config.student.image.init = "random"
    config = resolve(config)
    recipe, shapes = build_recipe(config, vocab_size=300), batch_shapes(config, training_views(config))
    params, _ = jax.eval_shape(lambda key: init_params(recipe, key, shapes), jax.random.key(0))
    assert params["student"]


def test_variants_are_refused_by_name():
    get_config = load(FILES[0].parent / "token_types.py").get_config
    for wrong in ("beside", "before,flickr30k", "smoke,before", "none,before"):
        with pytest.raises(UserError, match="unknown variant .* none, before, after, after_scaled"):
            get_config(wrong)
    assert get_config("before,smoke").student.token_types_at == get_config("before").student.token_types_at == "before"
    assert get_config("smoke").total_steps == 2


def test_rungs_make_one_ladder_and_build_in_every_form():
    recipes = find_recipes(FILES[0].parent)
    assert "s_smke" in [recipe.name for recipe in recipes]
    assert len({recipe.rung.order for recipe in recipes}) == len(recipes)
    for recipe in recipes:
        for form in ("", *FORMS):
            assert load_config(recipe.location(form)).terms


def test_s_smke_without_its_weights_names_the_file_it_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(FILES[0].parent / "s_smke.py").get_config()
    with pytest.raises(UserError, match="no weights at weights/beitv2-base-pt1k: give what `smke convert`"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_s_smke_describes_the_thesis():
    c = load(FILES[0].parent / "s_smke.py").get_config()
    assert (c.batch_size, c.total_steps, c.terms.target_itc.bank_size) == (512, 44_636, 65_536)
    assert (c.optimizer.name, c.optimizer.betas, c.optimizer.eps, c.optimizer.weight_decay, c.optimizer.clip_norm) == (
        "adamw", (0.9, 0.98), 1e-6, 0.01, 0.0,
    )  # fmt: skip
    assert not c.teacher.final_norm and c.data.crop_scale == (0.9, 1.0) and c.data.max_length == 64
    assert c.data.unit == "pairs"
