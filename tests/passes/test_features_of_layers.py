"""Features of chosen layers, against transformers."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from smke_jax.convert.convert import convert
from smke_jax.convert.source import Source
from smke_jax.errors import UserError
from smke_jax.models.build import build_model
from smke_jax.models.efficientnet import EfficientNetLite
from smke_jax.models.resnet import ResNet
from smke_jax.networks.frozen import frozen
from smke_jax.parts import part
from smke_jax.passes.features import check_pools, features

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


@pytest.fixture(scope="module")
def both():
    """(module, parameters, {layer: PyTorch's residual stream after it}, PyTorch's output)"""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14)
    theirs = Dinov2Model(config).eval()
    state = {name: x.detach().numpy() for name, x in theirs.state_dict().items()}
    conversion = convert(Source(Path("dinov2.safetensors"), state, config.to_dict()))
    pixels = (PIXELS / 255 - np.array(MEAN)) / np.array(STD)
    with torch.inference_mode():
        out = theirs(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32), output_hidden_states=True)
    streams = {i: x.numpy() for i, x in enumerate(out.hidden_states)}
    return build_model(conversion.description), conversion.params, streams, out.last_hidden_state.numpy()


def unit(x):
    return x / np.sqrt((x**2).mean(1, keepdims=True))


@pytest.mark.parametrize("pools", [("cls",), ("mean",), ("cls", "mean")])
@pytest.mark.parametrize("layers", [(), (2,), (1, 3)])
def test_it_is_pytorchs(both, pools, layers):
    model, params, streams, last = both
    run = features(model, "net", makes="photo", pools=pools, layers=layers, mean=MEAN, std=STD)
    with jax.default_matmul_precision("highest"):
        found = run.run({"net": params}, {"image": PIXELS}, None, False)
    outputs = [streams[i] for i in layers] if layers else [last]
    parts = [{"cls": x[:, 0], "mean": x[:, 1:].mean(1)}[pool] for x in outputs for pool in pools]
    np.testing.assert_allclose(found["photo/feature"], np.concatenate([unit(x) for x in parts], 1), atol=2e-5)
    np.testing.assert_allclose(found["photo/cls"], last[:, 0], atol=2e-5)
    assert set(found) == set(run.provides) == {f"photo/{x}" for x in ("cls", "feature", "tokens", "patches")}


def test_a_close_up_is_the_mean_with_the_mirrored_middle(both):
    """The middle is cut and enlarged by PyTorch here, and its feature is that of an image of its own."""
    model, params, *_ = both
    given = {"makes": "photo", "pools": ("cls", "mean"), "layers": (1, 3), "mean": (0.0,) * 3, "std": (1 / 255,) * 3}

    def feature(pixels, **fields):
        run = features(model, "net", **given, **fields)
        return run.run({"net": params}, {"image": pixels}, None, False)["photo/feature"]

    middle = torch.tensor(PIXELS, dtype=torch.float32).permute(0, 3, 1, 2)[:, :, 3:25, 3:25].flip(3)
    middle = torch.nn.functional.interpolate(middle, size=(28, 28), mode="bilinear").permute(0, 2, 3, 1).numpy()
    with jax.default_matmul_precision("highest"):
        alone = [feature(x) for x in (PIXELS, middle)]
        np.testing.assert_allclose(feature(PIXELS, close_up=0.8), (alone[0] + alone[1]) / 2, atol=2e-5)
    assert np.abs(alone[0] - alone[1]).max() > 0.01


@pytest.mark.parametrize("share", [0.0, 1.1, float("nan")])
def test_a_close_up_is_a_share_of_the_image(share):
    with pytest.raises(UserError, match="close_up is"):
        frozen(start="random", model={"type": "vit", "image_size": 28}, close_up=share)


@pytest.mark.parametrize(
    "pools, layers, said",
    [
        ((), (), "give cls or mean, or both"),
        (("max",), (), "give cls or mean, or both"),
        (("cls",), (0,), "there is no layer 0: the encoder has layers 1 to 1"),
        (("cls",), (2,), "there is no layer 2"),
    ],
)
def test_what_an_encoder_does_not_have_is_refused(pools, layers, said):
    model = part("vit", image_size=28, patch_size=14, width=24, depth=1, num_heads=2, mlp_dim=8)
    with pytest.raises(UserError, match=said):
        frozen(start="random", model=model, pools=pools, layers=layers)


def test_layers_of_an_efficientnet_are_means_of_their_cells():
    model = EfficientNetLite(image_size=32, width=12, width_multiplier=0.25, depth_multiplier=0.3)
    images = PIXELS[:2].repeat(2, axis=1).repeat(2, axis=2)[:, :32, :32]
    pixels = ((images / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    params = model.init(jax.random.key(0), pixels)["params"]
    _, sown = model.apply({"params": params}, pixels, mutable=["intermediates"])
    run = features(model, "net", makes="photo", layers=(3, 9), mean=MEAN, std=STD)
    found = run.run({"net": params}, {"image": images}, None, False)["photo/feature"]
    means = [np.asarray(sown["intermediates"][f"layer_{i}"][0]).mean(1) for i in (3, 9)]
    np.testing.assert_allclose(found, np.concatenate([unit(x) for x in means], 1), atol=2e-5)
    with pytest.raises(UserError, match="EfficientNetLite has no patches to take the mean of"):
        check_pools(model, ("mean",), (3,))
    with pytest.raises(UserError, match="there is no layer 10: the encoder has layers 1 to 9"):
        check_pools(model, ("cls",), (10,))


def test_an_encoder_without_layers_has_its_output_alone():
    for pools, layers in ((("mean",), ()), (("cls",), (1,))):
        with pytest.raises(UserError, match="a ResNet has no (patches|layers)"):
            check_pools(ResNet(), pools, layers)
