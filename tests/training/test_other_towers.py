"""A student on a ViT of another width with pixel statistics of its own: trained, gone on with, exported, searched."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

import smke_jax
from smke_jax.convert.params_file import PARAMS, read_description, save_params
from smke_jax.errors import UserError
from smke_jax.models.build import param_shapes
from smke_jax.parts import part
from smke_jax.training.build import build_part
from smke_jax.training.export import export_run
from smke_jax.training.loop import train_and_evaluate
from smke_jax.training.restore import restore_run

PIXELS = {"mean": [0.2, 0.4, 0.6], "std": [0.1, 0.2, 0.4]}
VIT = {"type": "vit", "image_size": 48, "patch_size": 8, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24,
       "layer_scale": 0.5, **PIXELS}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("weights"), np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), param_shapes(VIT))
    save_params(folder / PARAMS, params, {"model": VIT})
    return folder


def config(weights, **fields):
    c = tiny.tiny_config()
    c.update(num_devices=1, total_steps=4)
    own = {key: x for key, x in VIT.items() if key not in ("type", *PIXELS)} | {"image_size": 32, "depth": 1}
    c.networks.student = part(
        "two_towers", image=part("vit", **own), text=part("bert", width=24, depth=1, num_heads=2, mlp_dim=48), head=32,
        width=32, shared=part("transformer", num_heads=2, mlp_dim=48), image_start=str(weights), **fields,
    )  # fmt: skip
    c.evaluators.retrieval.every = 0
    return c


@pytest.fixture(scope="module")
def run(weights, tmp_path_factory):
    """Stopped after two steps of four, gone on with, and then left without the file that it began with."""
    folder = tmp_path_factory.mktemp("run")
    own = folder / "weights"
    shutil.copytree(weights, own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smke_jax.training.loop.stop_requests", Stopping)
        assert train_and_evaluate(config(own), folder / "run").step == 2
    train_and_evaluate(config(own), folder / "run")
    shutil.rmtree(own)
    return folder / "run"


class Stopping:
    """In place of `stop_requests`: asks for a stop after two steps."""

    def __enter__(self):
        return lambda step: step >= 2

    def __exit__(self, *error):
        return False


def test_a_run_keeps_what_the_file_said_of_pixels(run):
    assert json.loads((run / "run.json").read_text())["networks"]["student"] == PIXELS
    restored = restore_run(run)
    assert restored.step == 4
    names = set(restored.params["student"])
    assert {"image_projection", "text_projection"} <= names


@pytest.mark.parametrize("format", ["flax", "hf"])
def test_they_come_along_in_exports(run, tmp_path, format):
    """Retrieval's own evaluation, the Embedder on the run and on the export, and PyTorch agree."""
    written = export_run(run, tmp_path / "export", format=format)
    assert all(x.delta < 1e-5 for x in written.likeness.values()), written.likeness
    restored = restore_run(run)
    split = restored.experiment.task.split("dev")
    expected = restored.encoder()(("image/out",), split)["image/out"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    pictures = [Image.fromarray(split.facts["pixels"](i)) for i in range(len(expected))]
    found = smke_jax.load(tmp_path / "export").encode_images(pictures)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    if format == "hf":
        said = json.loads((tmp_path / "export/preprocessor_config.json").read_text())
        assert {name: said[f"image_{name}"] for name in PIXELS} == PIXELS
        return
    model = read_description(tmp_path / "export")["model"]
    assert {name: model[name] for name in PIXELS} == PIXELS and model["width"] == 32
    # With other statistics the same pictures come out elsewhere: the comparison above could have failed.
    file = tmp_path / "export" / PARAMS
    save_params(file, smke_jax.convert.params_file.load_params(file), {"model": {**model, "mean": [0.5, 0.5, 0.5]}})
    assert np.abs(smke_jax.load(tmp_path / "export").encode_images(pictures) - expected).max() > 1e-3


def test_a_student_that_starts_from_the_export_has_its_statistics(run, tmp_path):
    export_run(run, tmp_path / "export")
    c = config("random")
    c.networks.student.image_start, c.networks.student.start = "random", str(tmp_path / "export")
    network = build_part("networks", "student", c.networks.student, vocab_size=60)
    assert network.described == PIXELS
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), {}))
    assert len(jax.tree.leaves(network.start(shapes).params)) == len(jax.tree.leaves(shapes))
    c.networks.student.image.image_size = 48
    network = build_part("networks", "student", c.networks.student, vocab_size=60)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), {}))
    assert network.start(shapes).params["image_encoder"]["position_embedding"].shape == (37, 16)


WRONG = {
    "image.image_size 30 is no multiple of image.patch_size 8: set it to one": {"image_size": 30},
    "num_heads is 2 there and 4 here": {"num_heads": 4},
    "has 2 layers: the depth of the image tower is 3": {"depth": 3},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_refused_in_one_line(weights, message):
    c = config(weights)
    c.networks.student.image.update(WRONG[message])
    with pytest.raises(UserError, match=message) as refused:
        network = build_part("networks", "student", c.networks.student, vocab_size=60)
        network.start(jax.eval_shape(lambda: network.init(jax.random.key(0), {})))
    assert "\n" not in str(refused.value)


def test_towers_of_other_widths_need_the_width_of_the_shared_block(weights):
    c = config(weights)
    c.networks.student.width = None
    network = build_part("networks", "student", c.networks.student, vocab_size=60)
    with pytest.raises(UserError, match="needs equal widths: image 16, text 24; set both alike, or give width"):
        jax.eval_shape(lambda: network.init(jax.random.key(0), {}))
