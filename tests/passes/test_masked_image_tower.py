"""Towers over images of which patches are hidden, against transformers' models with their mask tokens."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import BeitConfig, BeitModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from smke_jax.convert.convert import convert
from smke_jax.convert.params_file import PARAMS, save_params
from smke_jax.convert.source import Source
from smke_jax.errors import UserError
from smke_jax.networks.fused_towers import fused_towers
from smke_jax.networks.masked_image_tower import masked_image_tower
from smke_jax.parts import part
from smke_jax.passes.image_masks import block_masks

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
SEEDS = np.array([5, -7, 11], np.int32)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
NORMALISED = ((PIXELS / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
OF_IMAGENET = (PIXELS / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {"image_size": 28, "patch_size": 7}
FAMILIES = {
    "vit": lambda: ViTModel(
        ViTConfig(**SMALL, **SIZES, intermediate_size=20), add_pooling_layer=False, use_mask_token=True
    ),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL, **SIZES, mlp_ratio=2)),
    "beit": lambda: BeitModel(
        BeitConfig(**SMALL, **SIZES, intermediate_size=20, use_shared_relative_position_bias=True, use_mask_token=True),
        add_pooling_layer=False,
    ),
}
TINY = part("data2vec2", image_size=28, patch_size=7, width=16, depth=2, num_heads=2, mlp_dim=12)


def saved(folder, model):
    """A directory of weights, as `smke convert` writes it of a model of transformers; the mask token stays behind."""
    state = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    conversion = convert(Source(Path("x.safetensors"), state, model.config.to_dict()))
    save_params(folder / PARAMS, conversion.params, {"model": {**conversion.description, "mean": MEAN, "std": STD}})
    return str(folder)


def run(network, params, number, arrays, seeds=SEEDS):
    """What the pass of that number makes."""
    p = network.forward("net", {})[number]
    with jax.default_matmul_precision("highest"):
        made = p.run({"net": params}, {**arrays, "draws": seeds}, None, False)
    assert set(made) == set(p.provides)
    return {name: np.asarray(x) for name, x in made.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_patches_are_those_of_transformers(family, tmp_path):
    torch.manual_seed(0)
    theirs = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network = masked_image_tower(start=saved(tmp_path, theirs), mask_cell=14, mask_ratio=0.5, hog_cells=1)
    params = network.start(jax.eval_shape(lambda: network.init(jax.random.key(0), {}))).params
    params = params | {"mask_token": theirs.embeddings.mask_token.detach().numpy().reshape(-1)}

    made = run(network, params, 1, {"image": PIXELS})
    mask = np.asarray(block_masks(SEEDS, 4, 2, 0.5))
    np.testing.assert_array_equal(made["masked_image/chosen"], mask)
    assert made["masked_image/chosen"].sum(1).tolist() == [8, 8, 8]
    pixels = torch.tensor(NORMALISED.transpose(0, 3, 1, 2))
    with torch.inference_mode():
        hidden = theirs(pixels, bool_masked_pos=torch.tensor(mask)).last_hidden_state.numpy()
        whole = theirs(pixels).last_hidden_state.numpy()
    np.testing.assert_allclose(made["masked_image/cls"], hidden[:, 0], atol=3e-4)
    np.testing.assert_allclose(made["masked_image/tokens"], hidden[:, 1:], atol=3e-4)
    assert np.abs(hidden - whole).max() > 0.01

    made = run(network, params, 0, {"image": PIXELS})
    np.testing.assert_allclose(made["image/cls"], whole[:, 0], atol=3e-4)
    np.testing.assert_allclose(made["image/tokens"], whole[:, 1:], atol=3e-4)
    np.testing.assert_allclose(made["image/mean"], whole[:, 1:].mean(1), atol=3e-4)


@pytest.mark.parametrize("by", ["token", "zero"])
def test_nothing_of_a_hidden_patch_is_seen(by):
    """Data2Vec2 too, of which transformers has no model with a mask token."""
    network = masked_image_tower(start="random", model=TINY, mask_cell=7, mask_ratio=0.75, hide_by=by, hog_cells=1)
    params = network.init(jax.random.key(0), {})
    assert ("mask_token" in params) == (by == "token")
    mask = run(network, params, 1, {"image": PIXELS})["masked_image/chosen"].reshape(3, 4, 4)
    of_pixels = mask.repeat(7, axis=1).repeat(7, axis=2)[..., None] == 1
    other = np.where(of_pixels, 255 - PIXELS, PIXELS).astype(np.uint8)
    before, after = (run(network, params, 1, {"image": x}) for x in (PIXELS, other))
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    np.testing.assert_allclose(before["masked_image/pixels"], np.where(of_pixels, 0, OF_IMAGENET), atol=1e-5)
    elsewhere = np.where(of_pixels, PIXELS, 255 - PIXELS).astype(np.uint8)
    seen = run(network, params, 1, {"image": elsewhere})
    assert np.abs(seen["masked_image/tokens"] - before["masked_image/tokens"]).max() > 1e-3


def test_noise_of_the_rows_own_is_added_to_hidden_patches():
    network = masked_image_tower(
        start="random", model=TINY, mask_cell=7, mask_ratio=1.0, hide_by="noise", noise=0.5, hog_cells=1
    )
    params = network.init(jax.random.key(0), {})
    made = run(network, params, 1, {"image": PIXELS})
    noise = made["masked_image/pixels"] - OF_IMAGENET
    assert abs(noise.std() - 0.5) < 0.02 and abs(noise.mean()) < 0.03
    assert np.abs(noise[0] - noise[1]).max() > 0.5, "each image has noise of its own"
    half = masked_image_tower(
        start="random", model=TINY, mask_cell=7, mask_ratio=0.5, hide_by="noise", noise=0.5, hog_cells=1
    )
    seen = run(half, params, 1, {"image": PIXELS})
    clean = seen["masked_image/chosen"].reshape(3, 4, 4).repeat(7, axis=1).repeat(7, axis=2)[..., None] == 0
    left = seen["masked_image/pixels"] - OF_IMAGENET
    np.testing.assert_allclose(np.where(clean, left, 0), 0, atol=1e-5)
    back = run(network, params, 1, {"image": PIXELS[::-1]}, SEEDS[::-1])
    np.testing.assert_allclose(back["masked_image/tokens"], made["masked_image/tokens"][::-1], atol=1e-4)


def test_towers_with_a_fusion_hide_the_same():
    """Of the same parameters the same states; patches are fused with the words, hidden ones too."""
    text = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 12}
    image = part("vit", image_size=28, patch_size=7, width=16, depth=1, num_heads=2, mlp_dim=12)
    options = {"mask_cell": 14, "mask_ratio": 0.5, "hog_cells": 1}
    tower = masked_image_tower(start="random", model=image, **options)
    fused = fused_towers(
        vocab_size=20, image=image, text=part("bert", **text), fusion=part("concat", **text), embed=4, **options
    )
    params = fused.init(jax.random.key(0), {})
    assert set(fused.export(params, {})[0]) == set(params) - {"mask_token"}
    passes = {p.name: p for p in fused.forward("net", {})}
    arrays = {"image": PIXELS, "draws": SEEDS}
    made = passes["net/masked_image"].run({"net": params}, arrays, None, False)
    own = {"encoder": params["image_encoder"], "mask_token": params["mask_token"]}
    expected = run(tower, own, 1, {"image": PIXELS})
    np.testing.assert_array_equal(made["masked_image/chosen"], expected["masked_image/chosen"])
    np.testing.assert_allclose(made["masked_image/states"][:, 1:], expected["masked_image/tokens"], atol=1e-5)
    words = {"text/states": RNG.normal(size=(3, 5, 16)).astype(np.float32), "text_mask": np.ones((3, 5), np.int32)}
    both = passes["net/fused_masked_image"].run({"net": params}, {**made, **words}, None, False)
    assert both["masked_image/fused"].shape == (3, 16, 16) and both["masked_image/fused_text"].shape == (3, 5, 16)
    words["text/states"] = words["text/states"] + 1
    other = passes["net/fused_masked_image"].run({"net": params}, {**made, **words}, None, False)
    assert np.all(np.abs(other["masked_image/fused"] - both["masked_image/fused"]).max((1, 2)) > 1e-5)
    with pytest.raises(UserError, match="mask_cell hides patches, and an image tower efficientnet_lite has none"):
        lite = part("efficientnet_lite")
        fused_towers(vocab_size=20, image=lite, text=part("bert"), fusion=part("concat"), mask_cell=32)


def test_an_export_is_the_encoder_alone():
    network = masked_image_tower(start="random", model=TINY, mask_cell=7, hog_cells=1)
    params = network.init(jax.random.key(0), {})
    encoder, description = network.export(params, {})
    assert encoder is params["encoder"] and description["type"] == "data2vec2" and description["image_size"] == 28


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"hide_by": "nothing"}, "hide_by is 'nothing': give token, zero or noise"),
        ({"noise": -1.0}, "noise is -1.0: it has to be at least 0"),
        ({"noise": 0.5}, "noise is 0.5, and hide_by=token adds none: set hide_by=noise"),
        ({"mask_cell": 32}, "mask_cell 32 is no multiple of the patch size 7: set it to one"),
        ({"mask_cell": 21}, "image_size 28 is no multiple of mask_cell 21: set it to one"),
        ({"mask_ratio": 1.0}, "mask_ratio 1.0 hides all of the 4 blocks"),
        ({"hog_cells": 2}, "hog_cells is 2: give a number that divides the patch size 7"),
        ({"image_size": 30}, "image_size 30 is no multiple of the patch size 7: set it to one"),
        ({"model": part("efficientnet_lite")}, "model.type: there is no 'efficientnet_lite' here"),
    ],
)
def test_mistakes_are_named(fields, said):
    given = {"model": TINY, "mask_cell": 14, "hog_cells": 1} | fields
    with pytest.raises(UserError, match=said):
        masked_image_tower(start="random", **given)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"hide_by": "nothing"}, "hide_by is 'nothing'"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"hide_by": "zero", "noise": 0.5}, "noise is 0.5, and hide_by=zero adds none"),
        ({"mask_ratio": 1.5}, "mask_ratio is 1.5: give a share above 0 and at most 1"),
        ({"hog_cells": 0}, "hog_cells is 0: it has to be at least 1"),
    ],
)
def test_mistakes_are_named_where_nothing_is_hidden_too(fields, said):
    with pytest.raises(UserError, match=said):
        masked_image_tower(start="random", model=TINY, mask_cell=0, **fields)
    sizes = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 12}
    towers = {"image": part("vit", **sizes, image_size=28, patch_size=7), "text": part("bert", **sizes)}
    with pytest.raises(UserError, match=said):
        fused_towers(vocab_size=30, **towers, fusion=part("cross", **sizes), mask_cell=0, **fields)
