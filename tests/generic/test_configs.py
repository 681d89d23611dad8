"""Every file in configs/: it says what it is and how to run it, is whole in all forms, and refuses what is unknown."""

import importlib.util
import json
import re
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from smke_jax import config_files, parts
from smke_jax.config_files import load_config, load_rungs, load_stages, override, override_stages
from smke_jax.data import datasets
from smke_jax.data.scenes import make_scenes
from smke_jax.data.transforms import View
from smke_jax.errors import UserError
from smke_jax.forms import FORMS
from smke_jax.selections.base import Selection
from smke_jax.training import build
from smke_jax.training.build import build_experiment, resolve
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.opening import open_run
from smke_jax.training.recipe import in_order, shapes_of, sources
from smke_jax.training.record import flatten
from smke_jax.training.stages import MARK, with_stages
from smke_jax.training.step import needed

FOLDER = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.py"))
SCENES = make_scenes(96, 16)
FACTS = {"num_images": 1000, "vocab_size": 30_522, "mask_token": 103, "special_tokens": [0, 100, 101, 102, 103]} | {
    "classes": 5, "class_names": list("abcde")
}  # fmt: skip


def module_of(path: Path):
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(path: Path) -> list[str]:
    """All that stands behind the colon: a form, a variant of the file, both, and nothing."""
    module = module_of(path)
    kinds, alone = ["", *getattr(module, "VARIANTS", ())], getattr(module, "ONE_SIZE", ())
    return [",".join(filter(None, (kind, form))) for kind in kinds for form in FORMS if not form or kind not in alone]


each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_there_are_configs():
    assert {"flickr8k", "s_smke"} <= {path.stem for path in FILES}


# ---- what they say


@each
def test_it_begins_with_what_it_is_and_its_exact_command(path):
    lines = module_of(path).__doc__.splitlines()
    assert len(lines[0]) > 20 and lines[0].endswith((".", ":")) and lines[1] == "", "a one-line summary comes first"
    commands = [line.strip() for line in lines if line.strip().startswith("smke ")]
    assert all(line.startswith("    smke ") for line in lines if line.strip().startswith("smke "))
    own = (f"smke train --config=configs/{path.name} --workdir=", f"smke sweep --config=configs/{path.name} --out=")
    assert [c for c in commands if c.startswith((*own, "smke demo"))]


@each
def test_the_flags_that_it_names_exist(path):
    """Each can be set on the command line to the value that the text gives it, of its stage or of the last one."""
    doc, stages = module_of(path).__doc__, load_stages(str(path))
    known = set(flatten(list(stages.values())[-1].copy_and_resolve_references()))
    for stage, config in stages.items():
        known |= set(flatten(config.copy_and_resolve_references(), f"config.{stage}"))
    for key in re.findall(r"--?-?(config\.[\w.]+)=", doc):
        assert key in known, key
    for flag in re.findall(r"`(--config\.[\w.]+=[^\s`]+)", doc):
        assert override_stages(load_stages(str(path)), [flag])


@each
def test_the_files_and_variants_that_it_names_exist(path):
    doc = module_of(path).__doc__
    for name, kind in re.findall(r"\b((?:configs|smke_jax)/[\w/]+\.(?:py|md))(?::([\w,]+))?", doc):
        assert (FOLDER.parent / name).is_file(), name
        if kind:
            load_config(f"{FOLDER.parent / name}:{kind}")


@each
def test_the_list_of_recipes_names_it(path):
    text = "\n".join((FOLDER / name).read_text() for name in ("README.md", "ladder.md"))
    assert re.search(rf"(`(configs/)?|^\| ){path.stem}\b", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["", "code", "seed"])
def test_the_layers_of_distilled_text_are_there(name):
    """With a teacher that has as many layers as the paper's: `without_files` cuts them all to one."""
    config = load_config(f"{FOLDER / 'kd_text.py'}:{name}".removesuffix(":"))
    for network in config.networks.values():
        network.start = "random"
        network.model.update(width=16, depth=12, num_heads=2, mlp_dim=8)
    config.num_devices, config.batch_size = 1, 8
    experiment = build_experiment(resolve(config), None, FACTS)
    assert [config.networks[x].depth for x in ("teacher", "student")] == [12, 6]
    own = {x: config.networks[x].layers for x in ("teacher", "student")}
    wanted = {"teacher": tuple(range(13)), "student": tuple(range(7))} if name == "code" else dict.fromkeys(own, ())
    assert own == wanted and {f"{x}/layers" for x in own} <= set(experiment.shapes.arrays)


# ---- what they are made of


class Shapes:
    """`shapes_of` for all passes there are, computed once for equal networks on equal data."""

    def __init__(self):
        self.known, self.key = {}, ""

    def __call__(self, recipe, batch, forward=None):
        if self.key not in self.known:
            items = [*recipe.passes, *(x for x in recipe.forward if isinstance(x, Selection))]
            made = {*batch}
            for _ in items:  # not those of evaluation, which read what a batch does not have
                able = [x for x in items if made >= {name for need in x.needs for name in sources(need)}]
                made |= {name for x in able for name in x.provides}
            self.known[self.key] = shapes_of(recipe, batch, in_order(items, batch, {"the test": made}))
        return self.known[self.key]


SHAPES = Shapes()


def without_files(config: ConfigDict) -> ConfigDict:
    """With random weights in place of files, and one layer in place of many: widths are what has to fit."""
    config = resolve(config)
    config.num_devices = 1
    for network in config.networks.values():
        for key in network:
            if key.endswith("start") and not Path(network[key]).is_file():  # drawn scenes have a shipped teacher
                network[key] = "random"
        if network.type == "frozen" and network.start == "random" and network.model is None:
            network.model = load_config(str(FOLDER / "teacher_flickr8k.py")).networks.views.model
            network.layers = network.layers[:1] and (1,)
        if network.type in ("text_tower", "text_classifier") and network.start == "random" and network.model is None:
            network.model = parts.part("bert", width=16, num_heads=2, mlp_dim=8)
            network.update({key: 4 for key in ("word_width",) if network.get(key)})
            network.update({key: 0 for key in ("frozen_layers",) if network.get(key)})  # of one layer
        if network.type == "image_tower" and network.start == "random" and network.model is None:
            sizes = {"width": 16, "num_heads": 2, "mlp_dim": 8, "patch_size": 14 if network.image_size else 16}
            network.model = parts.part("vit", **sizes)
        if network.type == "classifier" and network.start == "random" and network.model is None:
            network.model = parts.part("vit", width=16, num_heads=2, mlp_dim=8, patch_size=14)
            network.depth = 1
        if network.type.startswith("layered"):
            if network.start == "random" and network.model is None:
                kind = {"layered_image": ("vit", {"patch_size": 14}), "layered_text": ("bert", {})}[network.type]
                network.model = parts.part(kind[0], width=16, num_heads=2, mlp_dim=8, **kind[1])
            network.layers = network.layers and (1,)
        for model in (network, *(x for x in network.values() if isinstance(x, ConfigDict))):
            model.update({key: 1 for key in model if key == "depth" and model[key] is not None})
            model.update({key: (1, 1) for key in model if key == "depths"})
    return config


@pytest.mark.parametrize("location", [f"{path.stem}.py:{x}" for path in FILES for x in variants(path)])
def test_it_is_whole_in_every_variant_and_form(location, monkeypatch):
    """Parts have all fields of their builders, needs are met, and the terms begin with what the networks make."""
    monkeypatch.setattr(build, "shapes_of", SHAPES)
    for stage, config in load_stages(f"{FOLDER / location.removesuffix(':')}").items():
        assert config.terms and config.batch_size % 8 == 0 and bool(config.total_steps) != bool(config.epochs)
        for section in ("networks", "selections", "terms", "assets", "evaluators"):
            for own in config[section].values():
                complete(own)
        complete(config.task)
        config = without_files(config)
        SHAPES.key = json.dumps([flatten(config[x]) for x in ("networks", "task", "selections")]) + str(
            config.batch_size
        )
        experiment = build_experiment(config, None, FACTS)
        for term in experiment.recipe.terms.values():
            read = needed(term, experiment.shapes.arrays)
            params, slots = jax.eval_shape(lambda t=term, r=read: t.init(jax.random.key(0), r))
            jax.eval_shape(term.update, slots, read)
        assert stage == "" or re.fullmatch(r"\w+|[\w/]+", stage)


def complete(own: ConfigDict) -> None:
    """A part has the fields of its builder, no others, and cannot get others."""
    room, builder = parts.find(own.type)
    assert set(own) == {"type", *parts.defaults(room, builder)}
    with pytest.raises((AttributeError, KeyError), match="patchsize"):
        own.patchsize = 1
    for inner in own.values():
        if isinstance(inner, ConfigDict):
            complete(inner)


@each
def test_fields_that_do_not_exist_are_rejected(path):
    config = load_config(str(path))
    for where, key in ((config, "bach_size"), (config.optimizer, "lr"), (config.task, "tokeniser")):
        with pytest.raises((AttributeError, KeyError), match=key):
            setattr(where, key, 1)
        with pytest.raises((AttributeError, KeyError), match=key):
            where.update({key: 1})
    with pytest.raises(UserError, match="unknown config key config.task.tokeniser"):
        override(config, ["--config.task.tokeniser=x"])


@pytest.mark.parametrize("location", [f"{path.stem}.py:{x}" for path in FILES for x in variants(path)
                                      if hasattr(module_of(path), "get_stages")])  # fmt: skip
def test_stages_follow_one_another(location, tmp_path):
    """What a stage starts from is a stage before it; the last one is what the file is called for."""
    stages = load_stages(f"{FOLDER / location.removesuffix(':')}")
    names = list(stages)
    for i, (name, config) in enumerate(stages.items()):
        used = {x.removeprefix(MARK) for x in flatten(config).values() if isinstance(x, str) and x.startswith(MARK)}
        assert used <= set(names[:i]), f"{name} starts from {used}"
        placed = with_stages(config, {n: None for n in names[:i]}, tmp_path)
        assert not [x for x in flatten(placed).values() if isinstance(x, str) and x.startswith(MARK)]
    last = load_config(f"{FOLDER / location.removesuffix(':')}")
    assert flatten(stages[names[-1]]) == flatten(last)


def test_variants_are_refused_by_name():
    get_config = module_of(FOLDER / "token_types.py").get_config
    for wrong in ("beside", "before,flickr30k", "smoke,before", "none,before"):
        with pytest.raises(UserError, match="unknown variant .* none, before, after, after_scaled"):
            get_config(wrong)
    before = [get_config(x).networks.student.token_types_at for x in ("before,smoke", "before")]
    assert before == ["before", "before"] and get_config("smoke").total_steps == 2


def test_a_variant_of_one_size_has_no_form():
    for variant in ("seed,flickr8k", "seed,smoke"):
        with pytest.raises(UserError, match=f"variant '{variant}': seed is of one size, which no form changes"):
            module_of(FOLDER / "mamo.py").get_config(variant)


def test_rungs_make_one_ladder():
    rungs = [rung for path in FILES for rung in load_rungs(str(path))]
    assert len({rung.order for rung in rungs}) == len(rungs) > 15


def test_s_smke_without_its_weights_names_the_file_it_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "scenes", lambda *_: SCENES)
    config = load_config(str(FOLDER / "s_smke.py"))
    config.task = load_config(f"{FOLDER / 's_smke.py'}:smoke").task
    with pytest.raises(UserError, match="config.networks.teacher: no weights at weights/beitv2-base-pt1k: give what"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_s_smke_describes_the_thesis():
    c = load_config(str(FOLDER / "s_smke.py"))
    assert (c.batch_size, c.total_steps, c.terms.target_itc.bank_size) == (512, 44_636, 65_536)
    assert (c.optimizer.name, c.optimizer.betas, c.optimizer.eps, c.optimizer.weight_decay, c.optimizer.clip_norm) == (
        "adamw", (0.9, 0.98), 1e-6, 0.01, 0.0,
    )  # fmt: skip
    assert not c.networks.teacher.final_norm and c.task.crop_scale == (0.9, 1.0) and c.task.max_length == 64
    assert c.task.unit == "pairs" and c.task.data == ("data/coco", "data/cc3m", "data/cc12m")


def test_a_shipped_config_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = load_config(str(FOLDER / "lit.py") + ":smoke").to_json()
    for name in ("lit", "lit.py", "configs/lit.py"):
        assert load_config(f"{name}:smoke").to_json() == wanted
    # One's own file of that name comes first.
    (tmp_path / "lit.py").write_text("def get_config():\n    raise ZeroDivisionError\n")
    with pytest.raises(ZeroDivisionError):
        load_config("lit.py")
    with pytest.raises(UserError, match="no config file configs/lot.py: .* one that came along: .*lit"):
        load_config("configs/lot.py")


def test_a_wheel_names_its_configs(tmp_path, monkeypatch):
    """Of an installed wheel the list of files is all that is known; they lie outside of the package."""
    place = tmp_path / "share" / "smke_jax" / "configs" / "lit.py"
    place.parent.mkdir(parents=True)
    place.touch()
    info = tmp_path / "lib" / "smke_jax-0.dist-info"
    info.mkdir(parents=True)
    (info / "RECORD").write_text("smke_jax/parts.py,,\n../share/smke_jax/configs/lit.py,,\n../share/other/x.py,,\n")
    package = metadata.PathDistribution(info)
    monkeypatch.setattr(config_files.metadata, "distribution", lambda name: package)
    assert list(config_files._installed_configs()) == [place]


def test_fine_tuning_after_a_fusion_encoder_has_the_published_optimizer_or_that_of_its_small_form():
    location = FOLDER / "finetune_fused.py"
    for kind in ("", "albef", "mamo_seed"):  # spec B.3
        c = load_config(f"{location}:{kind}".removesuffix(":")).optimizer
        assert (c.learning_rate, c.final_rate, c.weight_decay, c.lr_rules) == (1e-5, 1e-6, 0.02, ()), kind
        assert not (c.decay_all or c.clip_norm or c.reference_batch or c.warmup_fraction)
    assert load_config(f"{location}:mamo_seed").task.tokenizer == "weights/bert-small/tokenizer", (
        "as in the first stage"
    )
    for variant in ("denoise,flickr8k", "scenes"):
        before, own = (x.optimizer.to_dict() for x in load_stages(f"{location}:{variant}").values())
        rates = {name: (before.pop(name), own.pop(name)) for name in ("learning_rate", "final_rate")}
        assert own == before and all(was == pytest.approx(10 * now) for was, now in rates.values())


def test_pretraining_with_a_fusion_encoder_has_the_published_settings():
    """Spec B.3 and B.6."""
    c = load_config(str(FOLDER / "albef.py"))
    optimizer, warmup = c.optimizer, c.optimizer.warmup_fraction * c.total_steps
    assert (optimizer.learning_rate, optimizer.final_rate, optimizer.weight_decay) == (1e-4, 1e-5, 0.02)
    assert int(warmup + 1e-6) == 2_000 and not optimizer.lr_rules and not optimizer.decay_all
    assert (c.batch_size, c.task.max_length, c.task.crop_scale, c.task.flip) == (512, 25, (0.2, 1.0), 0.5)
    for location in ("mamo.py:seed", "denoise.py"):
        c = load_config(f"{FOLDER / location}")
        assert (c.batch_size, c.task.max_length, c.task.flip, c.optimizer.final_rate) == (96, 35, 0.0, 1e-5)
        view = View(224, c.task.crop_scale, c.task.crop_ratio, c.task.flip)
        for size in ((500, 333), (333, 500), (500, 250)):
            for number in range(20):
                box = view.crop(Image.new("RGB", size), np.random.default_rng(number)).box
                np.testing.assert_allclose(box, (0, 0, *size), err_msg="the whole image, squashed", atol=1e-9)


@pytest.mark.parametrize("kind", module_of(FOLDER / "finetune_fused.py").VARIANTS)
def test_the_learned_temperature_goes_on_in_fine_tuning(kind):
    """It comes along by the name of its term."""
    first, second = load_stages(f"{FOLDER / 'finetune_fused.py'}:{kind}").values()
    assert "itc" in first.terms and "itc" in second.terms


def test_the_first_stage_of_fine_tuning_can_be_a_variant():
    first = load_stages(f"{FOLDER / 'finetune_fused.py'}:denoise_pixel_norm,smoke")["denoise_pixel_norm"]
    assert flatten(first) == flatten(load_config(f"{FOLDER / 'denoise.py'}:pixel_norm,smoke"))
    assert "mrm" in load_stages(f"{FOLDER / 'finetune_fused.py'}:mamo_seed")["mamo_seed"].terms


@pytest.mark.parametrize(
    ("flags", "gone"),
    [
        (["--config.terms.itc.weight=0", "--config.selections.hard_negatives.hardness=14"], "itc"),
        (["--config.terms.vicreg.weight=0", "--config.networks.towers.text_ratio=0.6"], "vicreg"),
        ([], "mim"),
        (["--config.terms.mlm.weight=0", "--config.evaluators.words.split="], "mlm"),
        (["--config.networks.towers.hide_by=noise", "--config.networks.towers.random_words=1.0"], ""),
        (["--config.terms.vicreg.pair=('masked_image/fused_cls','masked_text/fused_cls')"], ""),
        (
            ["--config.terms.itm.weight=0", "--config.evaluators.rerank.split=", "--config.task.data_fraction=0.25"],
            "itm",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_denoising_can_leave_out(flags, gone, monkeypatch):
    """The losses of the study can each be switched off, and the others still find what they read."""
    monkeypatch.setattr(datasets, "scenes", lambda *_: SCENES)
    kind = "words,smoke" if gone == "mim" else "smoke"
    config = resolve(override(load_config(f"{FOLDER / 'denoise.py'}:{kind}"), flags))
    config.num_devices = 1
    experiment = build_experiment(config, None, FACTS)
    assert set(experiment.recipe.terms) == {"mim", "mlm", "itc", "itm", "vicreg"} - {gone}
    measured = {"rerank": "itm", "words": "mlm", "reconstruction": "mim"}
    assert set(experiment.recipe.evaluators) == {"retrieval", *(x for x in measured if measured[x] != gone)}


def test_a_target_that_the_predictor_does_not_have_is_refused_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "scenes", lambda *_: SCENES)
    flag = "--config.evaluators.reconstruction.target=pixel"
    config = override(load_config(f"{FOLDER / 'denoise.py'}:hog,smoke"), [flag])
    config.num_devices = 1
    with pytest.raises(UserError, match="target is pixel, and mim/target is hog: set target=hog, as the network patch"):
        open_run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
