"""The classifier on an image encoder: against PyTorch, from every file it can begin with, on 1 and 8 devices."""

import json

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from made_up import jpeg, write

from smke_jax import load
from smke_jax.__main__ import main
from smke_jax.config_files import load_config
from smke_jax.convert.params_file import PARAMS, load_params, save_params
from smke_jax.data import datasets
from smke_jax.data.scenes import make_scenes
from smke_jax.errors import UserError
from smke_jax.models.build import build_model, param_shapes
from smke_jax.networks.classifier import classifier
from smke_jax.networks.frozen import frozen
from smke_jax.parallel.mesh import make_mesh, put_batch
from smke_jax.parts import part
from smke_jax.passes.base import MEAN, STD
from smke_jax.tasks.base import BatchPlan
from smke_jax.training.build import build_experiment, build_step, resolve
from smke_jax.training.export import export_run
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.step import init_state, make_train_step

TOWER = {"image_size": 16, "patch_size": 8, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 12}
NAMES = ("ant", "bee", "cow")
SCENES = make_scenes(48, 16)
RNG = np.random.default_rng(0)


def random_like(shapes):
    return jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32) * 0.3, shapes)


def config():
    c = load_config("configs/finetune_image.py:smoke")
    c.networks.classifier.model = part("vit", **TOWER | {"depth": 1})
    c.num_devices, c.log.report = 1, False
    return c


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(datasets, "scenes", lambda *_: SCENES)


def description_of(**fields):
    return classifier(class_names=NAMES, **fields).export(None, {})[1]


def test_the_head_is_that_of_pytorch():
    """Mean of the patches, LayerNorm, linear; the tower is compared with PyTorch elsewhere."""
    description = description_of(start="random", model=part("vit", **TOWER))
    model, params = build_model(description), random_like(param_shapes(description))
    images = RNG.normal(size=(5, 16, 16, 3)).astype(np.float32)
    logits = model.apply({"params": params}, images)
    tokens = model.encoder.apply({"params": params["encoder"]}, images)
    mean = torch.tensor(np.asarray(tokens))[:, 1:].mean(1)
    norm = [torch.tensor(params["norm"][name]) for name in ("scale", "bias")]
    expected = torch.nn.functional.layer_norm(mean, mean.shape[1:], *norm, eps=1e-6)
    expected = expected @ torch.tensor(params["head"]["kernel"]) + torch.tensor(params["head"]["bias"])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_new_head_is_small_and_has_no_bias():
    params = classifier(class_names=["x"] * 400, start="random", model=part("vit", **TOWER)).init(jax.random.key(0), {})
    assert np.std(params["head"]["kernel"]) == pytest.approx(0.02, rel=0.1) and np.all(params["head"]["bias"] == 0)


def saved(path, description, params):
    path.mkdir()
    save_params(path / PARAMS, params, {"model": description})
    return str(path)


def encoder_of(path, **fields):
    """The encoder's parameters at the start."""
    network = classifier(class_names=NAMES, start=path, **fields)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), {}))
    start = network.start(shapes)
    assert set(start.params) == set(start.origins) == {"encoder"}, "the head begins at random"
    return flatten_dict(start.params["encoder"], sep="/")


def test_it_begins_with_an_encoder_a_students_tower_or_a_classifier(tmp_path):
    pixels = {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
    vit = {"type": "vit", **TOWER}
    own = random_like(param_shapes({**vit, "image_size": 16}))
    plain = saved(tmp_path / "vit", vit | pixels, own)
    student = {"type": "student", "image": vit, "text": {"type": "bert"}, **pixels}
    inside = saved(tmp_path / "student", student, {"image_encoder": own, "text_encoder": {"x": np.zeros(1)}})
    tuned = {"type": "classifier", "image": vit, "class_names": ["a"], **pixels}
    head = {"encoder": own, "norm": {"scale": np.ones(8)}, "head": {"kernel": np.ones((8, 1))}}
    again = saved(tmp_path / "classifier", tuned, head)
    for path in (plain, inside, again):
        found = encoder_of(path)
        for name, value in flatten_dict(own, sep="/").items():
            np.testing.assert_array_equal(found[name], value)
        assert description_of(start=path)["mean"] == pixels["mean"]
    # A frozen teacher takes the same files.
    assert frozen(start=inside).start(param_shapes(vit)) is not None
    assert {name.split("/")[0] for name in encoder_of(plain, depth=1)} & {"block_0", "block_1"} == {"block_0"}
    assert encoder_of(plain, image_size=24)["position_embedding"].shape == (10, 8)


def test_a_frozen_encoder_is_cut_to_its_first_layers(tmp_path):
    """As a file of these layers alone says it."""
    vit = {"type": "vit", **TOWER, "mean": MEAN, "std": STD}
    params = random_like(param_shapes(vit))
    path = saved(tmp_path / "vit", vit, params)
    first = {name: x for name, x in params.items() if name != "block_1"}
    alone = saved(tmp_path / "first", vit | {"depth": 1}, first)
    arrays = {"image": RNG.integers(0, 255, (3, 16, 16, 3)).astype(np.uint8)}

    def features(**fields):
        network = frozen(image="image", pools=("cls", "mean"), **fields)
        shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), {}))
        (run,) = network.forward("t", {})
        return run.run({"t": network.start(shapes).params}, arrays, None, False)["target/feature"]

    np.testing.assert_allclose(features(start=path, depth=1), features(start=alone), rtol=1e-5)
    assert np.abs(features(start=path, depth=1) - features(start=path)).max() > 0.1
    with pytest.raises(UserError, match="has 2 layers: set depth to 2 or less"):
        frozen(start=path, depth=3)
    with pytest.raises(UserError, match="depth: resnet has no such field; leave it out"):
        frozen(start="random", model=part("resnet"), depth=1)


def test_what_the_file_was_trained_with_does_not_count(tmp_path):
    vit = {"type": "vit", **TOWER, "mean": MEAN, "std": STD, "token_drop": 0.25, "dropout": 0.1}
    path = saved(tmp_path / "vit", vit, random_like(param_shapes(vit)))
    for fields in ({}, {"token_drop": 0.5, "dropout": 0.3}):
        image = description_of(start=path, **fields)["image"]
        assert {name: image[name] for name in ("token_drop", "dropout")} == {"token_drop": 0.0, "dropout": 0.0} | fields
    light = {"start": "random", "model": part("efficientnet_lite", drop_path=0.2)}
    assert [description_of(**light, **f)["image"]["drop_path"] for f in ({}, {"drop_path": 0.1})] == [0.0, 0.1]


def test_what_does_not_fit_is_refused(tmp_path):
    vit = {"type": "vit", **TOWER, "mean": MEAN, "std": STD}
    path = saved(tmp_path / "vit", vit, random_like(param_shapes(vit)))
    with pytest.raises(UserError, match="has 2 layers: set depth to 2 or less"):
        classifier(class_names=NAMES, start=path, depth=3)
    with pytest.raises(UserError, match="token_drop: an encoder of type 'efficientnet_lite' has no such field"):
        classifier(class_names=NAMES, start="random", model=part("efficientnet_lite"), token_drop=0.5)
    bert = saved(tmp_path / "bert", {"type": "bert"}, {"x": np.zeros(1)})
    with pytest.raises(UserError, match="holds a model of type 'bert', which is no tower of images"):
        classifier(class_names=NAMES, start=bert)


def stepped(devices):
    """(loss, parameters) after two steps with mixing on so many devices."""
    c = config()
    c.networks.classifier.mix_probability = 1.0
    c = resolve(c)
    experiment = build_experiment(c, None)
    tx, *_ = build_step(c, experiment)
    mesh, batches = make_mesh(devices), experiment.task.batches
    arrays = frozenset(experiment.batch)
    rows = [batch for batch, _ in zip(batches(BatchPlan(16, 0, arrays=arrays)), range(2))]
    state = init_state(experiment.recipe, tx, mesh, rows[0], seed=0)
    step = make_train_step(experiment.recipe, tx, mesh, total_steps=2)
    losses = []
    for row in rows:
        state, metrics = step(state, {}, put_batch(row, mesh))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


def test_mixed_training_is_the_same_on_one_and_eight_devices():
    (losses, params), (others, other) = stepped(1), stepped(8)
    np.testing.assert_allclose(losses, others, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), params, other)


@pytest.mark.parametrize(("kind", "fields", "layers_below"), [
    ("data2vec2", {"norm_order": "post"}, 2), ("data2vec2", {"norm_order": "pre"}, 0), ("vit", {}, 0),
])  # fmt: skip
@pytest.mark.parametrize("decay", (0.5, 1.0))
def test_a_norm_before_the_first_block_learns_as_slowly_as_the_patches(kind, fields, layers_below, decay):
    """Of an encoder of one layer: 0.5 squared of the head's rate."""
    c = config()
    c.networks.classifier.model = part(kind, **TOWER | {"depth": 1} | fields)
    c.optimizer.update(layer_decay=decay, warmup_fraction=0.0, weight_decay=0.0)
    c = resolve(c)
    tx, _, abstract, _ = build_step(c, build_experiment(c, None))
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), abstract.params)
    moved = tx.update(ones, tx.init(ones), ones)[0]["classifier"]
    rate = lambda leaf: float(np.mean(leaf) / np.mean(moved["head"]["bias"]))  # noqa: E731
    assert rate(moved["encoder"]["norm"]["scale"]) == pytest.approx(decay**layers_below, rel=1e-3)
    assert rate(moved["encoder"]["patch_embed"]["kernel"]) == pytest.approx(decay**2, rel=1e-3)


def test_cutmix_alone_and_mixup_alone_are_values_of_a_config():
    for name in ("mixup_alpha", "cutmix_alpha"):
        c = config()
        c.networks.classifier[name] = 0.0
        assert resolve(c).networks.classifier[name] == 0.0
        c.networks.classifier[name] = -1.0
        with pytest.raises(UserError, match=f"{name} is -1.0: it has to be at least 0"):
            resolve(c)


def photos(folder, names=NAMES):
    files = {f"train/{c}/{i}.jpg": jpeg(i + 50 * k) for k, c in enumerate(names) for i in range(8)}
    return str(write(folder, files))


def test_a_run_names_its_classes_trains_the_head_alone_and_is_exported(tmp_path, capsys):
    c = config()
    c.networks.classifier.trained = ("^norm/", "^head/")
    c.task.update(layout="folders", data=photos(tmp_path / "photos"), held_back=0.25)
    c.evaluators.accuracy.update(split="dev", every=1)
    done = train_and_evaluate(c, tmp_path / "run")
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["facts"] == {"num_images": 18, "classes": 3, "class_names": list(NAMES)}
    assert facts["data"][0] == {"split": "train", "data": "photos", "images": 18, "classes": 3}
    assert set(done.params["classifier"]) == {"norm", "head"}
    assert 0 <= done.figures["accuracy"].scalars["top1"] <= 100
    written = export_run(tmp_path / "run", tmp_path / "out")
    assert written.network.description["class_names"] == list(NAMES)
    assert "photos`" in (tmp_path / "out/README.md").read_text()
    model = load(tmp_path / "out")
    assert model.encode_images(SCENES.train.images[:3]).shape == (3, TOWER["width"])
    assert set(load_params(tmp_path / "out")) == {"encoder", "norm", "head"}
    evaluate = lambda data: main(["evaluate", f"--workdir={tmp_path / 'run'}", f"--data={data}"])  # noqa: E731
    assert evaluate(photos(tmp_path / "others")) == 0
    assert (tmp_path / "run/evals/2/accuracy-others.json").is_file()
    assert evaluate(photos(tmp_path / "strange", ("x", "y", "z"))) == 2
    assert "strange has other classes (x, y, z …) than the run (ant, bee, cow …)" in capsys.readouterr().err
    begun = classifier(class_names=NAMES, start=str(tmp_path / "out"))
    assert begun.described["patch_size"] == TOWER["patch_size"]
