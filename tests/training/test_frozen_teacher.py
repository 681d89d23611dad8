"""What a frozen network's file says goes before the config, and a run keeps it; so for networks of evaluators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from smke_jax.convert.params_file import save_params
from smke_jax.errors import UserError
from smke_jax.evaluators import EVALUATORS
from smke_jax.evaluators.base import Evaluator, Figures
from smke_jax.models.teachers import build_teacher
from smke_jax.networks.frozen import frozen
from smke_jax.parts import part
from smke_jax.training.build import build_experiment, read_starts, resolve
from smke_jax.training.frozen import load_frozen

PIXELS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
SIZES = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16, "image_size": 32, "patch_size": 16}


def written(path, model) -> str:
    """A file of random weights of `model`."""
    params = jax.jit(build_teacher(model).init)(jax.random.key(5), jnp.zeros((1, 32, 32, 3)))["params"]
    save_params(path, params, {"model": model})
    return str(path)


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    return written(
        tmp_path_factory.mktemp("vit") / "vit.safetensors", {"type": "vit", **SIZES, **PIXELS, "norm_eps": 1e-12}
    )


def test_the_file_goes_before_the_part_that_stands_in_the_config(vit):
    for model in (None, part("vit"), part("beit")):
        said = {"type": "vit", **SIZES, **PIXELS, "norm_eps": 1e-12}
        assert dict(frozen(start=vit, model=model).described) == said


def test_a_file_without_the_statistics_of_its_pixels_is_refused(tmp_path):
    path = written(tmp_path / "vit.safetensors", {"type": "vit", **SIZES, "mean": [0.5, 0.5, 0.5]})
    with pytest.raises(UserError, match="does not say the std of its pixels: convert it again, with --mean and --std"):
        frozen(start=path)


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("vit", {"width": 32}, "model.width is 32, and .* says 16"),
        ("vit", {"norm_eps": 1e-3}, "model.norm_eps is 0.001, and .* says 1e-12"),
        ("beit", {"layer_scale": 0.5}, "model.layer_scale is set for a beit, and .* holds a vit"),
    ],
)
def test_a_field_that_someone_has_set_has_to_agree_with_the_file(vit, kind, fields, said):
    with pytest.raises(UserError, match=said):
        frozen(start=vit, model=part(kind, **fields))


def test_the_description_of_a_converted_resnet_is_known(tmp_path):
    model = {"type": "resnet", "image_size": 32, "width": 7, "stem_width": 8, "depths": [1, 1, 1, 1], **PIXELS}
    path = written(tmp_path / "resnet.safetensors", model)
    assert dict(frozen(start=path, model=part("resnet")).described) == model


def test_a_run_is_opened_again_without_the_file(vit):
    described = dict(frozen(start=vit).described)
    assert frozen(start="gone", described=described).described == described
    with pytest.raises(UserError, match="gone"):
        frozen(start="gone")


def test_a_network_that_only_an_evaluator_reads_begins_with_its_file(vit, monkeypatch):
    def spread(*, split: str = "dev") -> Evaluator:
        return Evaluator(("target/cls",), lambda encode, task, split: Figures({}, {}), split)

    monkeypatch.setitem(EVALUATORS, "spread", spread)
    c = tiny.tiny_config()
    del c.terms.target_itc
    c.networks.teacher = part("frozen", start=vit)
    c.evaluators.spread = part("spread")
    experiment = build_experiment(resolve(c), None, {"vocab_size": 60, "num_images": 16})
    starts = read_starts(experiment)
    ours = load_frozen(experiment.recipe, experiment.shapes, starts, experiment.mesh, seed=0, names=["teacher"])
    jax.tree.map(np.testing.assert_array_equal, ours["teacher"], starts["teacher"].params)
