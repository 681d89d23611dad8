"""Bias tables of BEiT for images of another size."""

import functools

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity import block_outputs
from random_weights import images
from safetensors.numpy import save_file
from test_convert_beit import FINETUNED, PRETRAINED, source

from smke_jax.__main__ import main
from smke_jax.convert.convert import convert
from smke_jax.convert.interpolate import for_image_size, resize_table
from smke_jax.convert.params_file import load_params, read_description
from smke_jax.models.build import build_model, param_shapes


@pytest.mark.parametrize("new", [2, 3, 5, 7])
def test_tables_are_resized_as_pytorch_does(new):
    table = np.random.default_rng(0).normal(size=(28, 4)).astype(np.float32)
    resized = resize_table(table, 3, new)
    offsets = torch.tensor(table[:-3].reshape(1, 5, 5, 4).transpose(0, 3, 1, 2))
    span = 2 * new - 1
    expected = F.interpolate(offsets, size=(span, span), mode="bicubic", align_corners=False, antialias=True)
    assert resized.shape == (span**2 + 3, 4)
    np.testing.assert_allclose(resized[:-3], expected[0].permute(1, 2, 0).reshape(-1, 4).numpy(), atol=1e-5)
    assert np.array_equal(resized[-3:], table[-3:])
    if new == 3:
        assert np.array_equal(resized, table)


def test_a_smooth_table_stays_smooth():
    def table(grid):  # of the offsets as shares of the image, both of its sides being 1
        y, x = np.meshgrid(*[(np.arange(2 * grid - 1) + 0.5) / (2 * grid - 1)] * 2, indexing="ij")
        smooth = np.stack([np.sin(2 * y + x), np.cos(3 * x * y)], -1)
        return np.concatenate([smooth.reshape(-1, 2), np.ones((3, 2))]).astype(np.float32)

    for new in (7, 24):
        np.testing.assert_allclose(resize_table(table(14), 14, new), table(new), atol=0.02)


@pytest.mark.parametrize("state", [PRETRAINED, FINETUNED], ids=["one table", "own tables"])
def test_a_network_runs_at_another_size(state):
    conversion = convert(source(state))
    same, description = for_image_size(conversion.params, conversion.description, 12)
    assert description == conversion.description
    assert jax.tree.all(jax.tree.map(np.array_equal, same, conversion.params))
    params, description = for_image_size(conversion.params, conversion.description, 20)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, param_shapes(description))
    blocks = jax.jit(functools.partial(block_outputs, build_model(description)))(params, images(1, 20))
    assert [x.shape for x in blocks[:3]] == [(1, 26, 32)] * 3 and all(np.isfinite(x).all() for x in blocks)


def test_the_command_resizes(tmp_path, capsys):
    save_file(PRETRAINED, tmp_path / "beit.safetensors")
    command = ["convert", f"--checkpoint={tmp_path}/beit.safetensors", f"--out={tmp_path}/out"]
    assert main([*command, "--image_size=21"]) != 0
    assert "image size 21 is no multiple of the patch size 4" in capsys.readouterr().err
    assert main([*command, "--image_size=20"]) == 0
    assert read_description(tmp_path / "out")["model"]["image_size"] == 20
    assert load_params(tmp_path / "out")["relative_bias"]["table"].shape == (84, 4)
