"""ResNet-50 comes in exactly, with its BatchNorms as they are at inference."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from parity import Case, Reference, check, check_whole, parametrized
from random_weights import images, pixels, randomise, saved
from safetensors.numpy import save_file
from transformers import ResNetConfig, ResNetForImageClassification

from smke_jax.__main__ import main
from smke_jax.convert.convert import convert
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.rules import to_torch
from smke_jax.convert.source import Source
from smke_jax.models.build import build_model, param_shapes
from smke_jax.models.resnet import Bottleneck

# Every stage of the tiny one still has places to pad: its last is 2 × 2.
TINY = {"embedding_size": 8, "hidden_sizes": [32, 64, 128], "depths": [2, 1, 3], "num_labels": 5}
RESNET_50 = {"num_labels": 1000}
TWO = RESNET_50 | {"depths": [2, 1, 1, 2]}
SIZES = {"tiny": (TINY, 3, 32), "wide": (TWO, 1, 224), "full": (RESNET_50, 1, 224)}  # config, batch, image size


def network(sizes: dict) -> ResNetForImageClassification:
    torch.manual_seed(0)
    model = randomise(ResNetForImageClassification(ResNetConfig(**sizes)))
    generator = torch.Generator().manual_seed(1)
    for name, x in model.named_buffers():
        if x.is_meta:
            continue
        if name.endswith("running_mean"):
            x.normal_(0, 0.3, generator=generator)
        elif name.endswith("running_var"):
            x.uniform_(0.5, 2, generator=generator)
    return model


def hf(size: str) -> Reference:
    sizes, batch, image_size = SIZES[size]
    model = network(sizes)
    given = images(batch, image_size)

    @torch.no_grad()
    def compute() -> list[np.ndarray]:
        out = model(pixels(given), output_hidden_states=True)
        return [*(x.numpy().transpose(0, 2, 3, 1) for x in out.hidden_states[1:]), out.logits.numpy()]

    return Reference(*saved(model), (given,), compute)


# Names of transformers -> of timm, written out here and not taken from smke_jax.convert.
TIMM = {
    r"^classifier\.1": lambda m: "fc",
    r"^resnet\.embedder\.embedder\.convolution": lambda m: "conv1",
    r"^resnet\.embedder\.embedder\.normalization": lambda m: "bn1",
    r"^resnet\.encoder\.stages\.(\d)\.layers\.": lambda m: f"layer{int(m[1]) + 1}.",
    r"\.layer\.(\d)\.convolution": lambda m: f".conv{int(m[1]) + 1}",
    r"\.layer\.(\d)\.normalization": lambda m: f".bn{int(m[1]) + 1}",
    r"\.shortcut\.convolution": lambda m: ".downsample.0",
    r"\.shortcut\.normalization": lambda m: ".downsample.1",
}


def timm(size: str) -> Reference:
    reference, state = hf(size), {}
    for name, x in reference.state.items():
        for pattern, replacement in TIMM.items():
            name = re.sub(pattern, replacement, name)
        state[name] = x
    return reference._replace(state=state, config={})


def stages(model, params, given) -> list:
    """What the last block of every stage gives, then the logits."""
    capture = lambda module, name: isinstance(module, Bottleneck)  # noqa: E731
    logits, extra = model.apply({"params": params}, given, capture_intermediates=capture, mutable=["intermediates"])
    blocks = {name: x["__call__"][0] for name, x in extra["intermediates"].items() if name.startswith("layer")}
    return [*(blocks[f"layer{stage}_{depth - 1}"] for stage, depth in enumerate(model.depths, 1)), logits]


CASES = [
    Case(layout, size, against, lambda make=make, size=size: make(size), stages)
    for size in SIZES
    for layout, against, make in (
        ("resnet-hf", "transformers ResNetForImageClassification", hf),
        ("resnet-timm", "transformers ResNetForImageClassification, renamed", timm),
    )
]


@parametrized(CASES, "tiny", "wide")
def test_parity(case):
    check(case)


@parametrized(CASES, "full")
def test_whole_networks_fit(case):
    check_whole(case)


def source(state, config=None) -> Source:
    return Source(Path("resnet50_a1_0-14fe96d1.pth"), state, config or {})


def test_full_size_is_resnet_50():
    """Spec 26.6; 25,557,032 is the number that timm and torchvision give, without the statistics."""
    shapes = param_shapes({"type": "resnet", "image_size": 224})
    sizes = {"statistics": 0, "others": 0}
    for path, x in jax.tree.leaves_with_path(shapes):
        sizes["statistics" if path[-1].key in ("mean", "var") else "others"] += x.size
    assert sizes["others"] == 25_557_032
    with torch.device("meta"):
        theirs = ResNetForImageClassification(ResNetConfig(**RESNET_50))
    assert sizes["others"] == sum(x.numel() for x in theirs.parameters())
    assert sizes["statistics"] == sum(x.numel() for name, x in theirs.named_buffers() if x.ndim)
    assert shapes["layer4_2"]["conv2"]["kernel"].shape == (3, 3, 512, 512) and shapes["fc"]["kernel"].shape[1] == 1000


def test_logits_in_bfloat16_are_near_those_in_fp32():
    conversion = convert(source(STATE))
    given = images(3, 32)
    models = (build_model(conversion.description | {"dtype": dtype}) for dtype in ("float32", "bfloat16"))
    exact, rounded = (np.asarray(jax.jit(model.apply)({"params": conversion.params}, given)) for model in models)
    assert rounded.dtype == np.float32 and 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_counters_are_left_out_and_transformers_loads_what_we_give_back(tmp_path):
    reference = hf("tiny")
    conversion = convert(source(reference.state, reference.config))
    assert conversion.description["depths"] == (2, 1, 3) and conversion.description["width"] == 5
    assert all(name.endswith(".num_batches_tracked") for name in conversion.report.ignored)
    back = to_torch(LAYOUTS["resnet-hf"], conversion.params, conversion.description)
    save_file(back, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(reference.config))
    model, info = ResNetForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    with torch.no_grad():
        logits = model.eval()(pixels(*reference.inputs)).logits.numpy()
    np.testing.assert_allclose(logits, reference.compute()[-1], rtol=1e-5, atol=1e-5)


STATE = timm("tiny").state
KERNEL = "layer2.0.downsample.0.weight"
BAD = {
    "missing block": (
        {name: x for name, x in STATE.items() if not name.startswith("layer3.1.")},
        "missing     layer3.1.conv1.weight",
    ),
    "squeeze and excitation": (
        STATE | {"layer1.0.se.fc1.weight": np.ones((2, 2), np.float32)}, "unexpected  layer1.0.se.fc1.weight",
    ),
    "other widths": (
        STATE | {KERNEL: STATE[KERNEL][:48]},
        f"wrong       {KERNEL}: shape (48, 32, 1, 1) gives (1, 1, 32, 48) for layer2_0/downsample_conv/kernel, "
        "which is (1, 1, 32, 64)",
    ),
    "no head": ({name: x for name, x in STATE.items() if not name.startswith("fc.")}, "is of no known layout"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused(what, tmp_path, capsys):
    state, says = BAD[what]
    np.savez(tmp_path / "bad.npz", **state)
    assert main(["convert", f"--checkpoint={tmp_path}/bad.npz", f"--out={tmp_path}/out"]) != 0
    said = capsys.readouterr()
    assert says in said.out + said.err
    assert not (tmp_path / "out").exists()


def test_the_older_stride_is_refused(tmp_path, capsys):
    reference = hf("tiny")
    save_file(reference.state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(reference.config | {"downsample_in_bottleneck": True}))
    assert main(["convert", f"--checkpoint={tmp_path}", f"--out={tmp_path}/out"]) != 0
    assert "stride is not in the second convolution" in capsys.readouterr().err
