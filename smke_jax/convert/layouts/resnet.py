"""ResNet-50 as timm, torchvision and transformers keep it (spec 26.6)."""

from collections.abc import Callable

from smke_jax.convert.pixels import IMAGENET, pixel_statistics
from smke_jax.convert.rules import CONV, Layout, Rule, batch_norm, linear
from smke_jax.convert.shapes import depth_of, stated
from smke_jax.errors import UserError

# Of a bottleneck; its first one in a stage has the last of these too.
PARTS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("downsample_conv", "downsample_bn"))
# Of timm's architectures; others of its names (resnetblur50, resnetaa50) have the same tensors and compute otherwise.
ARCHITECTURES = ("resnet26", "resnet50", "resnet101", "resnet152")
IGNORED = {".num_batches_tracked": "for training only"}

Names = tuple[str, str]  # of a convolution and of its norm


def _describe(state, config, *, stem: str, stages: dict[str, int], head: str) -> dict:
    """`stages`: what the names of each begin with -> the number of its blocks, where a config says it, else 0."""
    return {
        "type": "resnet",
        "image_size": 224,  # any would do; this is what the thesis feeds
        "width": len(state[head]),
        "stem_width": len(state[stem]),
        "depths": tuple(depth_of(state, stage, depth) for stage, depth in stages.items()),
        **pixel_statistics(config, IMAGENET),
    }


def _conv_norm(torch: Names, flax: Names) -> list[Rule]:
    return [Rule(f"{torch[0]}.weight", f"{flax[0]}/kernel", CONV), *batch_norm(torch[1], flax[1])]


def _rules(description: dict, *, stem: Names, block: Callable[[int, int], list[Names]], head: str) -> list[Rule]:
    """`block` (stage, place in it), both from 0 -> names of the PARTS."""
    rules = _conv_norm(stem, ("conv1", "bn1"))
    for stage, depth in enumerate(description["depths"]):
        for i in range(depth):
            parts = PARTS if i == 0 else PARTS[:-1]
            for (conv, norm), names in zip(parts, block(stage, i), strict=False):
                rules += _conv_norm(names, (f"layer{stage + 1}_{i}/{conv}", f"layer{stage + 1}_{i}/{norm}"))
    return rules + linear(head, "fc")


def _describe_timm(state, config) -> dict:
    architecture = config.get("architecture", "resnet50")
    if architecture not in ARCHITECTURES:
        raise UserError(f"its config.json says {architecture}, which is not read here: give {', '.join(ARCHITECTURES)}")
    stages = {f"layer{stage}.": 0 for stage in range(1, depth_of(state, "layer"))}
    return _describe(state, config, stem="conv1.weight", stages=stages, head="fc.weight")


def _block_timm(stage: int, i: int) -> list[Names]:
    path = f"layer{stage + 1}.{i}"
    convs = [(f"{path}.conv{n}", f"{path}.bn{n}") for n in (1, 2, 3)]
    return [*convs, (f"{path}.downsample.0", f"{path}.downsample.1")]


TIMM = Layout(
    name="resnet-timm",
    summary="ResNet-50 of timm and torchvision, with its 1000-way head",
    marks=("conv1.weight", "layer1.0.conv3.weight", "layer1.0.downsample.0.weight", "fc.weight"),
    describe=_describe_timm,
    rules=lambda description: _rules(description, stem=("conv1", "bn1"), block=_block_timm, head="fc"),
    ignored=IGNORED,
)

EMBEDDER = ("resnet.embedder.embedder.convolution", "resnet.embedder.embedder.normalization")
STAGES = "resnet.encoder.stages."


def _describe_transformers(state, config) -> dict:
    if config.get("downsample_in_bottleneck") or config.get("downsample_in_first_stage"):
        raise UserError("its stride is not in the second convolution of each stage but the first: no such model here")
    if config.get("hidden_act", "relu") != "relu":
        raise UserError(f"its hidden_act is {config['hidden_act']}: here a ResNet has relu")
    stages = {f"{STAGES}{stage}.layers.": depth for stage, depth in enumerate(stated(config, "depths"))}
    return _describe(state, config, stem=f"{EMBEDDER[0]}.weight", stages=stages, head="classifier.1.weight")


def _block_transformers(stage: int, i: int) -> list[Names]:
    path = f"{STAGES}{stage}.layers.{i}"
    parts = [f"{path}.layer.0", f"{path}.layer.1", f"{path}.layer.2", f"{path}.shortcut"]
    return [(f"{part}.convolution", f"{part}.normalization") for part in parts]


TRANSFORMERS = Layout(
    name="resnet-hf",
    summary="ResNetForImageClassification of transformers, with bottlenecks",
    marks=(f"{EMBEDDER[0]}.weight", f"{STAGES}0.layers.0.layer.2.convolution.weight", "classifier.1.weight"),
    describe=_describe_transformers,
    rules=lambda description: _rules(description, stem=EMBEDDER, block=_block_transformers, head="classifier.1"),
    ignored=IGNORED,
)
