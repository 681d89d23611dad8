"""The mean over layers against PyTorch: the two norms, and the outputs of layers of transformers' models."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BeitConfig, BeitModel, BertConfig, BertModel, Dinov2Config, Dinov2Model

from smke_jax.convert.convert import convert
from smke_jax.convert.params_file import PARAMS, save_params
from smke_jax.convert.source import Source
from smke_jax.errors import UserError
from smke_jax.networks.layered import layered_image, layered_text
from smke_jax.parts import part
from smke_jax.passes.layer_means import mean_of_layers

RNG = np.random.default_rng(0)
OUTPUTS = [RNG.normal(size=(3, 5, 6)) * (i + 1) + i for i in range(2)]
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
PIXELS = RNG.integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
IDS = RNG.integers(1, 20, (3, 7)).astype(np.int32)
TEXT_MASK = (np.arange(7) < np.array([7, 4, 2])[:, None]).astype(np.int32)
SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20}


def by_torch(outputs, layer_norm):
    """As the thesis computes it: F.instance_norm over the tokens of a channel, the mean, F.layer_norm."""
    mean = sum(F.instance_norm(x.transpose(1, 2)).transpose(1, 2) for x in outputs) / len(outputs)
    return F.layer_norm(mean, mean.shape[-1:]) if layer_norm else mean


@pytest.mark.parametrize("layer_norm", [True, False])
def test_value_and_gradient_are_pytorchs(layer_norm):
    weights = RNG.normal(size=OUTPUTS[0].shape)
    theirs = [torch.tensor(x, requires_grad=True) for x in OUTPUTS]
    expected = by_torch(theirs, layer_norm)
    (expected * torch.tensor(weights)).sum().backward()

    ours = [np.float32(x) for x in OUTPUTS]
    np.testing.assert_allclose(mean_of_layers(ours, layer_norm=layer_norm), expected.detach(), atol=1e-5)
    found = jax.grad(lambda xs: (mean_of_layers(xs, layer_norm=layer_norm) * weights).sum())(ours)
    for a, b in zip(found, theirs, strict=True):
        np.testing.assert_allclose(a, b.grad, atol=1e-5)


def test_with_a_mask_padding_neither_counts_nor_matters():
    """Every row by itself, cut to its tokens, is what PyTorch makes of it; one token alone has no variance: 0."""
    ours = [np.float32(x) for x in OUTPUTS]
    found = np.asarray(mean_of_layers(ours, MASK, layer_norm=False))
    for row, count in enumerate(MASK.sum(1)[:2]):
        cut = [torch.tensor(x[row : row + 1, :count]) for x in OUTPUTS]
        np.testing.assert_allclose(found[row, :count], by_torch(cut, False)[0], atol=1e-5)
    np.testing.assert_allclose(found[2, 0], 0, atol=1e-5)
    padded = [np.where(MASK[:, :, None] > 0, x, 7.0).astype(np.float32) for x in ours]
    other = np.asarray(mean_of_layers(padded, MASK, layer_norm=False))
    np.testing.assert_allclose(other[1, :3], found[1, :3], atol=1e-6)


# ---- outputs of layers, against transformers


def saved(folder, model, **more):
    """A directory of weights, as `smke convert` writes it of a model of transformers."""
    state = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    conversion = convert(Source(Path("x.safetensors"), state, model.config.to_dict()))
    folder.mkdir()
    save_params(folder / PARAMS, conversion.params, {"model": {**conversion.description, **more}})
    return str(folder)


def heard(modules):
    """[output of each module, …], filled when they run."""
    found = []
    for module in modules:
        module.register_forward_hook(lambda module, inputs, out: found.append(out))
    return found


def run(network, arrays):
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), {}))
    start = network.start(shapes)
    (p,) = network.forward("net", {})
    assert p.provides == (f"{p.provides[0].split('/')[0]}/layers",)
    with jax.default_matmul_precision("highest"):
        return np.asarray(p.run({"net": start.params}, arrays, None, False)[p.provides[0]])


FAMILIES = {
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL, mlp_ratio=2, image_size=28, patch_size=14)),
    "beit": lambda: BeitModel(
        BeitConfig(**SMALL, image_size=28, patch_size=14, use_shared_relative_position_bias=True, use_mask_token=False),
        add_pooling_layer=False,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "fields", [{}, {"depth": 2, "remat": "blocks"}, {"depth": 3, "layers": (2, 3), "layer_norm": False}]
)
def test_mlp_outputs_of_image_encoders(family, fields, tmp_path):
    torch.manual_seed(0)
    theirs = FAMILIES[family]().eval()
    with torch.no_grad():  # no LayerScale, bias or norm is trivial
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    outputs = heard([module for name, module in theirs.named_modules() if name.endswith(".mlp")])
    pixels = (PIXELS / 255 - np.array(MEAN)) / np.array(STD)
    with torch.inference_mode():
        theirs(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32))
    layers = fields.get("layers") or range(1, fields.get("depth", 3) + 1)
    expected = by_torch([outputs[i - 1] for i in layers], fields.get("layer_norm", True))
    folder = saved(tmp_path / "weights", theirs, mean=MEAN, std=STD)
    found = run(layered_image(start=folder, **fields), {"image": PIXELS})
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("fields", [{}, {"depth": 2}, {"layers": (0, 1, 2, 3), "layer_norm": True}])
def test_streams_of_bert(fields, tmp_path):
    """Register 12: the code of the thesis averages the embeddings too, which are layer 0."""
    torch.manual_seed(0)
    theirs = BertModel(BertConfig(vocab_size=20, max_position_embeddings=9, **SMALL)).eval()
    with torch.inference_mode():
        mask = torch.tensor(TEXT_MASK)
        hidden = theirs(torch.tensor(IDS), mask, output_hidden_states=True).hidden_states
    layers = fields.get("layers") or range(1, fields.get("depth", 3) + 1)
    folder = saved(tmp_path / "weights", theirs)
    arrays = {"text": IDS, "text_mask": TEXT_MASK}
    expected = by_torch([hidden[i] for i in layers], fields.get("layer_norm", False))
    found = run(layered_text(vocab_size=20, start=folder, **fields), arrays)
    np.testing.assert_allclose(found, expected, atol=1e-4)

    apart = run(layered_text(vocab_size=20, start=folder, padding=False, **fields), arrays)
    for row, count in enumerate(TEXT_MASK.sum(1)):
        cut = [hidden[i][row : row + 1, :count] for i in layers]
        np.testing.assert_allclose(apart[row, :count], by_torch(cut, fields.get("layer_norm", False))[0], atol=1e-4)


def test_another_image_size_interpolates_positions(tmp_path):
    torch.manual_seed(0)
    folder = saved(tmp_path / "weights", FAMILIES["dinov2"](), mean=MEAN, std=STD)
    network = layered_image(start=folder, image_size=14)
    assert network.sizes == {"image": 14}
    assert run(network, {"image": PIXELS[:, :14, :14]}).shape == (2, 2, 24)
    params, description = network.export("parameters", {})
    assert (params, description["image_size"], description["mean"]) == ("parameters", 14, MEAN)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"depth": 4}, "has 3 layers, and depth is 4: set depth to 1 to 3"),
        ({"depth": 0}, "has 3 layers, and depth is 0: set depth to 1 to 3"),
        ({"output": "fc1"}, "output 'fc1' is neither mlp nor stream"),
        ({"layers": (0, 1)}, "there is no layer 0 with output='mlp': give layers from 1 to 3"),
        ({"depth": 2, "layers": (3,)}, "there is no layer 3 with output='mlp': give layers from 1 to 2"),
        ({"image_size": 30}, "image_size 30 is no multiple of the patch size 14: set it to one"),
        ({"model": part("vit", patch_size=7)}, "model.patch_size is 7, and .* says 14: leave it out"),
    ],
)
def test_mistakes_are_named(tmp_path, fields, said):
    folder = saved(tmp_path / "weights", FAMILIES["dinov2"](), mean=MEAN, std=STD)
    with pytest.raises(UserError, match=said):
        layered_image(start=folder, **fields)


def test_a_convolutional_network_has_no_such_layers():
    with pytest.raises(UserError, match="model.type: there is no 'efficientnet_lite' here"):
        layered_image(start="random", model=part("efficientnet_lite"))
