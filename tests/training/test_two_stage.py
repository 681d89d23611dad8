"""Two-stage compression: the published sizes, what a stage reads and trains, its corpus, and what is refused."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from smke_jax.compression_forms import COMPRESSIONS
from smke_jax.config_files import load_config, load_stages
from smke_jax.convert.params_file import PARAMS, digests, save_params
from smke_jax.data import datasets
from smke_jax.data.scenes import make_scenes
from smke_jax.embedder import load
from smke_jax.errors import UserError
from smke_jax.evaluators.base import Asset
from smke_jax.models.build import build_model
from smke_jax.networks.image_tower import image_tower
from smke_jax.networks.inherit import kept_layers
from smke_jax.networks.projections import projections
from smke_jax.networks.text_tower import text_tower
from smke_jax.networks.two_towers import two_towers
from smke_jax.parts import part
from smke_jax.reporting.run_file import read_run
from smke_jax.selections.corpus_negatives import corpus_negatives
from smke_jax.tasks.base import Split
from smke_jax.training import loop
from smke_jax.training.build import build_experiment, build_step, resolve
from smke_jax.training.export import export_run
from smke_jax.training.frozen import frozen_shapes
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.opening import open_run
from smke_jax.training.optimizer import learning_rate_schedule
from smke_jax.training.recipe import split_params
from smke_jax.training.stages import EXPORT, train_stages

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "motis.py"
SCENES = make_scenes(40, 16)
FACTS = {"num_images": 1000, "vocab_size": 49_408}
CLIP = part(
    "vit", image_size=224, patch_size=32, width=768, depth=12, num_heads=12, mlp_dim=3072, norm_eps=1e-5,
    activation="quick_gelu", patch_bias=False, norm_embeddings=True,
)  # fmt: skip
SMALL = part("vit", image_size=224, patch_size=16, width=384, depth=12, num_heads=6, mlp_dim=1536)
WORDS = part("clip_text", width=512, depth=12, num_heads=8, mlp_dim=2048)


def published(variant, stage):
    """A stage of the paper's setting with random weights of CLIP's and of the students' sizes in place of files."""
    c = resolve(load_stages(f"{CONFIG}:{variant}".removesuffix(":"))[stage])
    for name, network in c.networks.items():
        for key in network:
            if key.endswith("start"):
                network[key] = "random"
        if network.type == "image_tower":
            network.model = CLIP if name == "clip" else SMALL
        if network.type == "text_tower":
            network.model = WORDS
    c.num_devices = 1
    return c


def trained_scalars(experiment):
    """Of every network, and of the terms' temperatures."""
    networks = {
        name: split_params(network, experiment.shapes.networks[name])[0]
        for name, network in experiment.recipe.networks.items()
        if network.trained
    }
    return {name: sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for name, tree in networks.items()}


@pytest.mark.parametrize(
    "variant, stage, tower, count",
    [
        ("joint", "teacher_joint", ("clip", "words"), 151_277_312),  # and the temperature of its contrast
        ("", "image", ("photo",), 21_862_272),
        ("", "image1", ("photo",), 21_862_272),
        ("", "text", ("words",), 44_513_792),
        ("text4", "text", ("words",), 38_209_024),
        ("text2", "text1_text2", ("words",), 31_904_256),
    ],
)
def test_the_published_sizes(variant, stage, tower, count):
    """Of the towers that a stage trains, with their projections; nothing is computed."""
    experiment = build_experiment(published(variant, stage), None, FACTS)
    found = trained_scalars(experiment)
    assert set(found) == {*tower, "student"}
    assert sum(found.values()) == count
    if stage == "teacher_joint":
        term = experiment.recipe.terms["itc"]
        scale = jax.eval_shape(lambda: term.init(jax.random.key(0), {})[0])
        assert count + len(jax.tree.leaves(scale)) == 151_277_313


def test_a_student_of_another_size_sees_the_teachers_crop_of_the_photo():
    """Of the same size both read the same pixels."""
    config = published("", "image1")
    assert {"image"} == set(build_experiment(config, None, FACTS).batch) - {"id"}
    config.networks.photo.model.image_size = 96
    batch = build_experiment(config, None, FACTS).batch
    assert batch["image"].shape[1:] == (96, 96, 3) and batch["teacher_image"].shape[1:] == (224, 224, 3)


@pytest.mark.parametrize("stage", ["image", "text"])
def test_a_step_of_the_published_sizes_is_traced(stage):
    """On shapes alone: the paper's towers, COCO's 566,747 captions or 113,287 images as the corpus."""
    config = published("", stage)
    experiment = build_experiment(config, None, FACTS)
    _, _, state, run = build_step(config, experiment)
    rows = {"image": 566_747, "text": 113_287}[stage]
    frozen = frozen_shapes(experiment.recipe, experiment.shapes, rows)
    assert not set(experiment.batch) & {"teacher_image", "photo"}, "a frozen tower reads pixels in the step"
    assert {n for p in experiment.recipe.forward if hasattr(p, "networks") for n in p.networks} == {
        "image": {"photo", "student", "teacher"}, "text": {"words", "student", "teacher"}
    }[stage]  # fmt: skip
    _, metrics = jax.eval_shape(run, state, frozen, experiment.batch)
    assert {"itc/loss", "kl/loss", "intra/loss", "hard/loss"} <= set(metrics)


def highest(warmup_fraction, steps):
    """The step at which the learning rate is the highest."""
    rate = learning_rate_schedule(peak=1.0, total_steps=steps, warmup_fraction=warmup_fraction)
    return int(np.argmax(jax.vmap(rate)(jnp.arange(steps))))


@pytest.mark.parametrize("variant", ["", "joint", "none,flickr8k"])
def test_no_warm_up_is_longer_than_its_stage(variant):
    """The paper's 10,000 steps are those of stage 1; a stage that is cut short has a share of them."""
    for name, config in load_stages(f"{CONFIG}:{variant}".removesuffix(":")).items():
        for steps in (config.total_steps, 100):
            assert 0 < highest(config.optimizer.warmup_fraction, steps) < steps
        if not variant and name in ("image1", "text1"):
            assert highest(config.optimizer.warmup_fraction, config.total_steps) == 10_000


def test_every_epoch_of_pairs_is_evaluated_and_saved():
    """COCO has 566,747 of them."""
    evaluated = {name: c for name, c in load_stages(str(CONFIG)).items() if c.evaluators}
    assert list(evaluated) == ["teacher_image", "teacher_text", "image", "text"]
    for config in evaluated.values():
        epoch = round(566_747 / config.batch_size)
        assert (config.evaluators.retrieval.every, config.checkpoint.every) == (epoch, epoch)
        assert config.evaluators.retrieval.best == "text_to_image/r1"


# ---- what the students begin with


TEXT = {
    "type": "clip_text", "vocab_size": 20, "width": 8, "depth": 5, "num_heads": 2, "mlp_dim": 6, "max_positions": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(folder, parameters) of a small CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    model = {
        "type": "clip", "embed_dim": 5, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
        "image": {"image_size": 8, "patch_size": 4, "width": 8, "depth": 5, "num_heads": 2, "mlp_dim": 6},
        "text": {name: x for name, x in TEXT.items() if name != "type"},
    }  # fmt: skip
    ids = np.arange(6, dtype=np.int32)[None]
    params = build_model(model).init(jax.random.key(2), np.zeros((1, 8, 8, 3), np.float32), ids)["params"]
    save_params(folder / PARAMS, params, {"model": model})
    return folder, params


@pytest.mark.parametrize(
    "keep, depth, layers",
    [("first", 2, (0, 1)), ("even", 2, (0, 2)), ("even", 3, (0, 1, 2)), ("last", 2, (3, 4)), ("even", 5, range(5))],
)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_layers_of_the_teacher(clip, tower, keep, depth, layers):
    folder, params = clip
    fields = {"start": str(folder), "depth": depth, "keep": keep}
    network = text_tower(vocab_size=20, pool="cls", **fields) if tower == "text" else image_tower(**fields)
    start = network.start(jax.eval_shape(lambda: network.init(jax.random.key(0), {})))
    theirs = params[f"{tower}_encoder"]
    assert {name for name in start.params if name.startswith("block_")} == {f"block_{i}" for i in range(depth)}
    for i, layer in enumerate(layers):
        for ours, expected in zip(
            *(jax.tree.leaves(x) for x in (start.params[f"block_{i}"], theirs[f"block_{layer}"]))
        ):
            np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(start.params["norm"]["scale"], theirs["norm"]["scale"])


def test_layers_by_other_names_stay():
    layers = {"block_0": 0, "block_1": 1, "block_2": 2, "relative_bias_2": 3, "norm": 4}
    assert kept_layers(layers, "last", 3, 1) == {"block_0": 2, "relative_bias_0": 3, "norm": 4}


BERT = {
    "type": "bert", "vocab_size": 20, "width": 6, "depth": 1, "num_heads": 2, "mlp_dim": 4, "max_positions": 9,
    "type_vocab_size": 2, "pooler": False,
}  # fmt: skip


def test_a_narrower_table_of_words_is_the_best_of_its_rank(tmp_path):
    """Against the singular values of NumPy, and in the tower: a table times a matrix."""
    ids, mask = np.arange(8, dtype=np.int32).reshape(2, 4), np.ones((2, 4), np.int32)
    params = build_model(BERT).init(jax.random.key(1), ids, mask)["params"]
    save_params(tmp_path / PARAMS, params, {"model": BERT})
    network = text_tower(vocab_size=20, start=str(tmp_path), word_width=4)
    found = begun(network, {}).params
    table = np.asarray(params["word_embedding"], np.float64)
    u, values, v = np.linalg.svd(table, full_matrices=False)
    product = np.asarray(found["word_embedding"] @ found["word_projection"]["kernel"])
    assert found["word_embedding"].shape == (20, 4)
    np.testing.assert_allclose(product, (u[:, :4] * values[:4]) @ v[:4], atol=1e-6)

    whole = {**params, "word_embedding": product}
    (p,) = network.forward("words", {})
    feature = p.run({"words": found}, {"text": ids, "text_mask": mask}, None, False)["words/feature"]
    tokens = build_model(BERT).apply({"params": whole}, ids, mask)[0]
    np.testing.assert_allclose(feature, np.asarray(tokens).mean(1), atol=1e-5)
    with pytest.raises(UserError, match="word_width is 6: it has to be at least 1 and below 6"):
        text_tower(vocab_size=20, start=str(tmp_path), word_width=6)


def test_a_clip_has_no_narrower_table(clip):
    with pytest.raises(UserError, match="word_width: a text tower of type 'clip_text' has no such field"):
        text_tower(vocab_size=20, start=str(clip[0]), word_width=2)


def specs(**widths):
    return {f"{name}/feature": jax.ShapeDtypeStruct((2, width), jnp.float32) for name, width in widths.items()}


def begun(network, arrays):
    return network.start(jax.eval_shape(lambda: network.init(jax.random.key(0), arrays)))


def test_projections_of_a_clip_and_its_temperature(clip):
    folder, params = clip
    network = projections(
        image=("photo/feature",), width=5, bias=False, image_start=str(folder), text_start=str(folder)
    )
    start = begun(network, specs(photo=8, words=8))
    for side in ("image", "text"):
        expected = params[f"{side}_projection"]["kernel"]
        np.testing.assert_array_equal(start.params[side]["linear"]["kernel"], expected)
    assert start.terms["itc"]["logit_scale"]["out"] == params["logit_scale"]


def test_of_an_earlier_stage_the_contrast_alone_brings_its_temperature(tmp_path):
    """What another term of the new config starts at is what its field says."""
    kernel = np.arange(6, dtype=np.float32).reshape(3, 2)
    own = {"type": "projections", "image": ["photo/feature"], "text": [], "shared": None, "head": None}
    model = {"type": "aligned", "networks": {"student": own}, "logit_scales": {"itc": {"out": 2.0}, "hard": {"out": 3}}}
    params = {"student": {"image": {"linear": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}}}
    save_params(tmp_path / PARAMS, params, {"model": model})
    network = projections(image=("photo/feature",), text=(), width=2, image_start=str(tmp_path))
    start = begun(network, specs(photo=3))
    np.testing.assert_array_equal(start.params["image"]["linear"]["kernel"], kernel)
    assert start.terms == {"itc": {"logit_scale": {"out": 2.0}}}


@pytest.mark.parametrize(
    "fields, widths, said",
    [
        ({"bias": True}, {}, "the projection of .* has kernel: set bias=False"),
        ({"width": 6}, {}, "projects into 5 channels, not 6: set width=5"),
        ({}, {"photo": 9}, "projects features of 8 channels, and photo/feature have 9: leave image_start out"),
        ({"trained": "all"}, {}, "trained is 'all': give one of both, none, image, text"),
        ({"image": (), "text": ()}, {}, "image and text are both empty"),
    ],
)
def test_projections_that_do_not_fit(clip, fields, widths, said):
    """A student wider than the projection of its teacher allows is one of them."""
    given = {"image": ("photo/feature",), "width": 5, "bias": False, "image_start": str(clip[0])}
    with pytest.raises(UserError, match=said):
        begun(projections(**given | fields), specs(**{"photo": 8, "words": 8} | widths))


# ---- the corpus


CORPUS = {"corpus": Asset(("teacher_text/out",), whole=True, normalised=True)}


def task_of(owners, images):
    """A task whose captions belong to these images."""

    class Task:
        train, facts = "train", {"num_images": images}

        @staticmethod
        def split(name):
            return Split("made up train", "", {}, {"caption_image": np.asarray(owners)})

    return Task


@pytest.mark.parametrize(
    "owners, images, numbers, k, said",
    [
        ([0, 0, 1, 2], 3, "text_id", 3, "takes k=3 negatives from 4 captions of made up train, of which 2 .*: set k=2"),
        ([0, 0, 0], 1, "text_id", 1, "takes k=1 negatives from 3 captions .* which all belong to one image"),
        (
            [0, 1, 2],
            3,
            "id",
            3,
            "takes k=3 negatives from 3 images .*, of which 1 belong to one image: set k=2 or less",
        ),
        ([0, 0, 1, 2], 3, "text_id", 2, ""),
    ],
)
def test_a_corpus_that_is_too_small(owners, images, numbers, k, said):
    check = corpus_negatives(k=k).check
    if not said:
        return check(task_of(owners, images), {"corpus": numbers}, CORPUS)
    with pytest.raises(UserError, match=said):
        check(task_of(owners, images), {"corpus": numbers}, CORPUS)


@pytest.mark.parametrize(
    "fields, assets, facts, said",
    [
        (
            {},
            {"corpus": Asset(("teacher_text/out",))},
            {"num_images": 3},
            "'corpus', which keeps rows for batches alone",
        ),
        ({"of": "image/out"}, CORPUS, {"num_images": 3}, "looks for image/out, and .* keeps teacher_text/out: set of="),
        ({}, CORPUS, {}, "tells rows apart by their images, and this task has none: take a task of images"),
    ],
)
def test_a_corpus_of_another_kind(fields, assets, facts, said):
    task = task_of([0, 1, 2], 3)
    task.facts = facts
    with pytest.raises(UserError, match=f"config.selections: corpus_negatives .*{said}"):
        corpus_negatives(k=1, **fields).check(task, {"corpus": "id"}, assets)


def test_negatives_are_asked_for():
    with pytest.raises(UserError, match="k is 0: it has to be at least 1"):
        corpus_negatives(k=0)


SIZES = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 8}


def second_stage(folder):
    """Stage 2 of an image student, of random weights, with a fixed term for every loss."""
    c = resolve(load_stages(f"{CONFIG}:none,smoke")["image"])
    for network in c.networks.values():
        for key in network:
            if key.endswith("start"):
                network[key] = "random"
        if network.type == "text_tower":
            network.model = part("bert", max_positions=12, **SIZES)
        if network.type == "frozen":
            network.model = part("vit", image_size=32, patch_size=16, **SIZES)
    c.networks.photo.model = part("vit", image_size=32, patch_size=16, **SIZES)
    c.batch_size, c.total_steps, c.num_devices, c.evaluators.retrieval.split = 8, 2, 2, ""
    c.selections.hard.k, c.assets.corpus.folder, c.log.report = 3, str(folder), False
    return c


@pytest.fixture
def few_scenes(monkeypatch):
    monkeypatch.setattr(datasets, "scenes", lambda *_: SCENES)


def test_a_row_gets_its_own_caption_and_the_corpus_is_kept(few_scenes, tmp_path, monkeypatch):
    """Interrupted and continued it is not made again; a corpus of another model is refused."""
    seen, real = [], loop.put_batch

    def stop_after_one(batch, mesh):
        if "text_id" in batch:
            seen.append(dict(batch))
            if len(seen) == 2:
                raise KeyboardInterrupt
        return real(batch, mesh)

    monkeypatch.setattr(loop, "put_batch", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(second_stage(tmp_path / "kept"), tmp_path / "run")
    assert set(seen[0]) == {"image", "id", "text_id", "teacher_text/out", "scenes/feature"}
    kept = np.load(path := tmp_path / "kept" / "corpus" / "teacher_text-out.npy")
    captions = [caption for own in SCENES.train.captions for caption in own]
    assert kept.dtype == np.float16 and len(kept) == len(captions)
    np.testing.assert_allclose(np.linalg.norm(kept.astype(np.float32), axis=1), 1, atol=1e-3)
    np.testing.assert_array_equal(seen[0]["teacher_text/out"], kept[seen[0]["text_id"]].astype(np.float32))
    owner = np.repeat(np.arange(len(SCENES.train.captions)), [len(own) for own in SCENES.train.captions])
    np.testing.assert_array_equal(owner[seen[0]["text_id"]], seen[0]["id"])

    written = path.stat().st_mtime_ns
    monkeypatch.setattr(loop, "put_batch", real)
    train_and_evaluate(second_stage(tmp_path / "kept"), tmp_path / "run")
    assert path.stat().st_mtime_ns == written, "embedded a second time"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2 and np.isfinite(rows[-1]["hard/loss"])

    other = second_stage(tmp_path / "kept")
    other.networks.teacher_words.pool = "cls"
    with pytest.raises(
        UserError, match="teacher_text-out.npy was made with another config.networks.teacher_words.pool"
    ):
        train_and_evaluate(other, tmp_path / "other")
    for field, value, said in (("max_length", 7, "max_length .12 there, 7 here."), ("lowercase", False, "tokenizer")):
        other = second_stage(tmp_path / "kept")
        other.task[field] = value
        with pytest.raises(UserError, match=f"teacher_text-out.npy was made with another {said}"):
            train_and_evaluate(other, tmp_path / field)


def test_only_the_tower_of_the_stage_moves(few_scenes, tmp_path, monkeypatch):
    """Each of its matrices does.  The other side of the projections is frozen, and so is the whole teacher."""
    begun_with, real = [], loop.with_starts
    monkeypatch.setattr(
        loop, "with_starts", lambda *given: begun_with.append(jax.device_get(found := real(*given))) or found
    )
    config = second_stage(tmp_path / "kept")
    outcome = train_and_evaluate(config, tmp_path / "run")
    assert set(outcome.params) == {"photo", "student", "terms"} and set(outcome.params["student"]) == {"image"}
    moved = jax.tree.map(lambda x, y: bool(np.any(np.asarray(x) != y)), outcome.params, begun_with[0])
    matrices = {path: x for path, x in flatten_dict(moved, sep="/").items() if path.endswith("kernel")}
    assert len(matrices) > 5 and all(matrices.values()), matrices


FORMS_OF_SMKE = list(COMPRESSIONS["s_smke"].values())


@pytest.mark.parametrize("form", FORMS_OF_SMKE, ids=lambda form: form.form.name or "thesis")
def test_the_teacher_is_the_student_of_its_own_run(form):
    """But for where it starts; an export of another architecture would be refused hours later."""
    own = load_config(f"{CONFIG.with_name(form.teachers_run)}:{form.form.name}").networks.student
    ours = form.frozen(form.teacher)["teacher"]
    told = {"start", "image_start", "text_start", "frozen", "makes"}
    assert {name for name in own if own[name] != ours[name]} <= told
    assert ours.frozen and ours.start == form.teacher and form.projection["width"] == (own.width or own.text.width)


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_teacher_with_a_shared_block_is_tuned_on_one_side(few_scenes, tmp_path, monkeypatch, side):
    """Its tower moves, each matrix of it; the other tower and the block have no gradient and no optimiser's state."""
    begun_with, real = [], loop.with_starts
    monkeypatch.setattr(
        loop, "with_starts", lambda *given: begun_with.append(jax.device_get(found := real(*given))) or found
    )
    config = resolve(load_stages(f"{CONFIG}:s_smke,smoke")[f"teacher_{side}"])
    config.networks.student.start, config.evaluators.retrieval.split = "random", ""
    config.batch_size, config.num_devices, config.log.report = 8, 1, False
    outcome = train_and_evaluate(config, tmp_path / "run")
    assert set(outcome.params) == {"student", "terms"} and set(outcome.params["student"]) == {f"{side}_encoder"}
    moved = jax.tree.map(lambda x, y: bool(np.any(np.asarray(x) != y)), outcome.params, begun_with[0])
    matrices = {path: x for path, x in flatten_dict(moved, sep="/").items() if path.endswith("kernel")}
    assert len(matrices) > 4 and all(matrices.values()), matrices


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant, own, teacher, width", [("smoke", "lit", "teacher_words", 512), ("s_smke,smoke", "s_smke", "teacher", 32)]
)
def test_all_stages_of_the_smallest_form(few_scenes, tmp_path, variant, own, teacher, width):
    """From the teacher's own training on: each stage begins with what the one before it has made."""
    stages = load_stages(f"{CONFIG}:{variant}")
    for name, config in stages.items():
        config.num_devices, config.log.report = 1, False
        if name != "image" and config.evaluators:
            config.evaluators.retrieval.split = ""
    finished = train_stages(stages, tmp_path)
    assert (finished.stage, finished.whole) == ("text", True)
    names = [own, "teacher_image", "teacher_text", "image1", "text1", "image", "text"]
    assert list(stages) == names and [x for x in names if (tmp_path / x / EXPORT).exists()] == names[:-1]
    begun = read_run(tmp_path / "text")["identity"]
    for network, stage in (("photo", "image"), ("words", "text1"), (teacher, "teacher_text")):
        assert begun[f"{network} weights"] == digests(tmp_path / stage / EXPORT)["weights"]
    model = load(tmp_path / "text")
    images, texts = model.encode_images(SCENES.train.images[:2]), model.encode_texts(SCENES.train.captions[0])
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    assert images.shape[1] == texts.shape[1] == width


def test_a_projection_begins_with_features_like_those_it_was_trained_on(few_scenes, tmp_path):
    """Features of as many channels that are made in another way would fit, and mean nothing to it."""
    config = load_config(f"{CONFIG.with_name('lit.py')}:smoke")
    config.total_steps, config.num_devices, config.log.report = 1, 1, False
    tower = next(name for name in config.networks if name not in ("words", "student"))
    config.networks[tower].close_up = 0.5
    train_and_evaluate(config.copy_and_resolve_references(), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "export")
    config.networks.student.update(image_start=str(tmp_path / "export"), text_start=str(tmp_path / "export"))
    open_run(config.copy_and_resolve_references(), tmp_path / "alike")
    for network, field, other, said in ((tower, "close_up", 1.0, "0.5"), ("words", "pool", "cls", "mean")):
        changed = config.copy_and_resolve_references()
        changed.networks[network][field] = other
        made = f"trained on features of {field}={said}, and .*/feature has {other}: set config.networks.{network}"
        with pytest.raises(UserError, match=made):
            open_run(changed, tmp_path / field)


@pytest.mark.parametrize("stage, sees", [("image1", "image"), ("text1", "text")])
def test_the_first_stage_sees_one_modality_and_its_export_too(few_scenes, tmp_path, stage, sees):
    """Pools without pairs: neither the other modality's array is read, nor does the export embed it."""
    config = resolve(load_stages(f"{CONFIG}:smoke")[stage])
    for network in config.networks.values():
        for key in network:
            if key.endswith("start") and not network[key].endswith(".safetensors"):
                network[key] = "random"
        if network.type == "text_tower":
            network.model = part("bert", max_positions=12, **SIZES)
        if network.type == "image_tower":
            network.model = part("vit", image_size=32, patch_size=16, **SIZES)
    config.total_steps, config.num_devices, config.log.report = 1, 1, False
    train_and_evaluate(config, tmp_path / "run")
    written = export_run(tmp_path / "run", tmp_path / "export")
    assert set(written.likeness) == {f"{sees}/out", f"{sees}_embeds"}
    experiment = build_experiment(config, None, FACTS)
    assert ("image" in experiment.whole) == (sees == "image") and ("text" in experiment.whole) == (sees == "text")
    with pytest.raises(UserError, match=f"projects {sees} alone, and --format=hf is for models of both"):
        export_run(tmp_path / "run", tmp_path / "hf", format="hf")
    with pytest.raises(UserError, match="has no projection of"):
        other = "text" if sees == "image" else "image"
        given = {"image": ("photo/feature",), f"{other}_start": str(tmp_path / "export")}
        begun(projections(**given), specs(photo=16, words=16))


def test_a_student_of_ours_teaches_both_modalities():
    """Under another name, from a view of its own, and frozen; it says what it says as a student."""
    fields = {"image": part("vit", image_size=16, patch_size=8, **SIZES), "text": part("bert", **SIZES),
              "shared": part("transformer", num_heads=2, mlp_dim=8), "vocab_size": 20, "head": 5}  # fmt: skip
    network, teacher = two_towers(**fields), two_towers(**fields, frozen=True, makes="teacher")
    assert network.trained is True and teacher.trained is False
    assert (network.sizes, teacher.sizes) == ({"image": 16}, {"teacher_image": 16})
    params = network.init(jax.random.key(0), {})
    ids = np.arange(8, dtype=np.int32).reshape(2, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    arrays = {"text": ids, "text_mask": np.ones_like(ids), "image": 255 - pixels, "teacher_image": pixels}

    def made(network, arrays):
        found = {}
        for p in network.forward("x", arrays)[:2]:
            found |= p.run({"x": params}, {need: arrays[need] for need in p.needs}, None, False)
        return found

    theirs, ours = made(teacher, arrays), made(network, {**arrays, "image": pixels})
    assert set(theirs) == {f"teacher_{name}" for name in ours}
    for name in ("image/out", "text/out", "text/head"):
        np.testing.assert_array_equal(theirs[f"teacher_{name}"], ours[name])
    with pytest.raises(UserError, match="frozen=True trains nothing: leave trained out"):
        two_towers(**fields, frozen=True, trained=("^head",))
