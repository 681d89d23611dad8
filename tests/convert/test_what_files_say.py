"""What shapes do not tell of a model: taken from the config beside the file, marked as assumed, or asked for."""

from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from smke_jax.convert.convert import convert
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.params_file import PARAMS, load_params, read_description, save_params
from smke_jax.convert.pixels import HALF, IMAGENET
from smke_jax.convert.rules import to_torch
from smke_jax.convert.source import Source
from smke_jax.errors import UserError
from smke_jax.models.build import param_shapes

SIZES = {"width": 192, "depth": 1, "num_heads": 3, "mlp_dim": 20, "norm_eps": 1e-6, "activation": "gelu"}
IMAGE = {"image_size": 8, "patch_size": 4, **SIZES}
TEXT = {"vocab_size": 24, "max_positions": 10, **SIZES}
VIT = {"type": "vit", **IMAGE, "layer_scale": None}
BEIT = {"type": "beit", **IMAGE, "shared_bias": True, "final_norm": True}
BERT = {"type": "bert", **TEXT, "type_vocab_size": 2, "pooler": True}
MODELS = {
    "vit-timm": VIT,
    "vit-hf": VIT,
    "vit-npz": VIT,
    "dinov2-hf": VIT | {"layer_scale": 1.0},
    "beit-unilm": BEIT,
    "beit-hf": BEIT,
    "bert": BERT,
    "clip-hf": {"type": "clip", "embed_dim": 16, "image": IMAGE, "text": TEXT},
    "resnet-timm": {"type": "resnet", "image_size": 32, "width": 5, "stem_width": 8, "depths": (1, 1)},
    "resnet-hf": {"type": "resnet", "image_size": 32, "width": 5, "stem_width": 8, "depths": (1, 1)},
}
LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 3}
CONFIGS = {
    **dict.fromkeys(("vit-hf", "dinov2-hf", "beit-hf", "bert"), LAYERS),
    "clip-hf": {"vision_config": LAYERS, "text_config": LAYERS},
    "resnet-hf": {"depths": [1, 1]},
}


def state_of(layout: str, **changes) -> dict[str, np.ndarray]:
    """What a file of that layout holds, of a model with `changes`."""
    rng, description = np.random.default_rng(0), MODELS[layout] | changes
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), param_shapes(description))
    return to_torch(LAYOUTS[layout], params, description)


def read(layout: str, state: dict, config: dict | None = None, **fields):
    config = CONFIGS.get(layout, {}) if config is None else config
    return convert(Source(Path("weights.pth"), state, config), layout, **fields)


@pytest.mark.parametrize("layout", sorted(set(CONFIGS) - {"bert"}))
def test_a_file_of_transformers_needs_its_config(layout):
    state = state_of(layout)
    assert read(layout, state).report.sound
    with pytest.raises(UserError, match=r"weights.pth: nothing says its \w+: put its config.json beside it"):
        read(layout, state, {})


@pytest.mark.parametrize("layout", ["vit-hf", "dinov2-hf", "beit-hf", "bert"])
def test_layers_that_the_config_has_and_the_file_has_not(layout):
    report = read(layout, state_of(layout), LAYERS | {"num_hidden_layers": 2}).report
    assert report.missing and all("encoder.layer.1." in name for name in report.missing)


def test_layers_that_a_config_of_clip_has_and_the_file_has_not():
    config = CONFIGS["clip-hf"] | {"text_config": LAYERS | {"num_hidden_layers": 2}}
    missing = read("clip-hf", state_of("clip-hf"), config).report.missing
    assert missing and all(name.startswith("text_model.encoder.layers.1.") for name in missing)


def test_a_resnet_is_what_its_config_says():
    state = state_of("resnet-hf")
    missing = read("resnet-hf", state, {"depths": [1, 2]}).report.missing
    assert missing and all(".stages.1.layers.1." in name for name in missing)
    with pytest.raises(UserError, match="hidden_act is gelu: here a ResNet has relu"):
        read("resnet-hf", state, {"depths": [1, 1], "hidden_act": "gelu"})
    state = state_of("resnet-timm")
    assert read("resnet-timm", state, {"architecture": "resnet50"}).report.sound
    with pytest.raises(UserError, match="says resnetblur50, which is not read here: give resnet26, resnet50"):
        read("resnet-timm", state, {"architecture": "resnetblur50"})


def test_the_number_of_heads_is_known_of_the_usual_widths_alone():
    """MAE's ViT-H is 1280 wide, with 16 heads of 80."""
    assert read("vit-timm", state_of("vit-timm")).description["num_heads"] == 3
    huge = state_of("vit-timm", width=1280, num_heads=16)
    with pytest.raises(UserError, match="give --num_heads"):
        read("vit-timm", huge)
    assert read("vit-timm", huge, num_heads=16).description["num_heads"] == 16


HEAD, EXTRA = "lm_head.weight", np.ones((2, 192), np.float32)
BESIDE = {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
STATISTICS = {  # layout, what the file has beside the model, config; mean and std, whether they are assumed
    "first Data2Vec": ("beit-unilm", {HEAD: np.ones((192, 192), np.float32)}, {}, HALF, False),
    "BEiT v2": ("beit-unilm", {HEAD: EXTRA, "cls_pt_layers.0.norm1.weight": EXTRA}, {}, IMAGENET, False),
    "BEiT of either kind": ("beit-unilm", {HEAD: EXTRA}, {}, IMAGENET, True),
    "fine-tuned": ("beit-unilm", {}, {}, IMAGENET, True),
    "timm, alone": ("vit-timm", {}, {}, IMAGENET, True),
    "timm, with its config": ("vit-timm", {}, BESIDE, HALF, False),
    "timm, with a hollow config": ("vit-timm", {}, {"pretrained_cfg": None}, IMAGENET, True),
    "npz": ("vit-npz", {}, {}, HALF, False),
}


@pytest.mark.parametrize("case", STATISTICS)
def test_statistics_of_pixels_are_derived_or_marked_as_assumed(case):
    layout, extra, config, (mean, std), assumed = STATISTICS[case]
    conversion = read(layout, state_of(layout) | extra, config)
    assert conversion.report.sound and "assumed" not in conversion.description
    assert (conversion.description["mean"], conversion.description["std"]) == (mean, std)
    assert conversion.report.assumed == (("mean", "std") if assumed else ())


@pytest.mark.parametrize("changes", [{"max_positions": 514}, {"type_vocab_size": 1}])
def test_a_roberta_is_no_bert(changes):
    state = state_of("bert", **changes)
    with pytest.raises(UserError, match="it is a roberta, by its sizes, which is not read here"):
        read("bert", state, {}, num_heads=3)
    assert read("bert", state, LAYERS | {"model_type": "bert"}).report.sound


MALFORMED = {
    "clip-hf": {"vision_config": None, "text_config": LAYERS},
    "clip-hf, a word": {"vision_config": "large", "text_config": LAYERS},
    "resnet-hf": {"depths": 3},
    "vit-hf": {"num_hidden_layers": "12"},
    "bert": {"model_type": "bert", "num_attention_heads": [3]},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_config_is_refused_in_a_line(case):
    layout = case.split(",")[0]
    with pytest.raises(UserError, match="weights.pth"):
        read(layout, state_of(layout), MALFORMED[case])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, "bfloat16"])
def test_weights_that_are_no_numbers(value, dtype):
    state = {name: x.astype(dtype) for name, x in state_of("vit-timm").items()}
    state["norm.bias"][3] = value
    report = read("vit-timm", state).report
    assert report.wrong == {"norm.bias": "it holds NaN or infinity"} and not report.sound


def test_a_flipped_bit_of_weights_or_of_their_description_is_noticed(tmp_path):
    path = tmp_path / PARAMS
    save_params(path, {"a": {"b": np.arange(6, dtype=np.float32)}, "c": np.float32(3)}, {"model": {"type": "bert"}})
    whole = path.read_bytes()
    assert load_params(path)["a"]["b"].tolist() == [0, 1, 2, 3, 4, 5] and read_description(path)["model"]
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="the weights in .* are damaged: fetch or convert them again"):
        load_params(path)
    path.write_bytes(whole.replace(b"bert", b"beit"))
    with pytest.raises(UserError, match="says of its model is damaged"):
        read_description(path)
    # A file of an earlier version has no sums.
    safetensors.numpy.save_file({"c": np.ones(2)}, path, {"smke_jax": '{"model": {"type": "bert"}}'})
    assert load_params(path)["c"].dtype == np.float32 and read_description(path)["model"]["type"] == "bert"
