"""EfficientNet-Lite as the PyTorch ports of the first release keep it."""

from smke_jax.convert.pixels import LITE, pixel_statistics
from smke_jax.convert.rules import CONV, Kind, Layout, Rule, batch_norm, layer, linear, per_layer
from smke_jax.convert.shapes import depth_of
from smke_jax.efficientnet_blocks import blocks_of
from smke_jax.errors import UserError

# What each was trained at: multiplier of the width, of the depth, and size of the images.
VARIANTS = ((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 280), (1.4, 1.8, 300))  # Lite0 to Lite4
EXPAND, DEPTHWISE = "_blocks.{i}._expand_conv.weight", "_blocks.{i}._depthwise_conv.weight"
STEM, LAST = "_conv_stem.weight", "_conv_head.weight"


def _matrix(x):
    if x.ndim != 4 or x.shape[2:] != (1, 1):
        raise ValueError("it is no 1×1 convolution")
    return (x[:, :, 0, 0].T,)


POINTWISE = Kind(_matrix, lambda x: x.T[:, :, None, None])  # (out, in, 1, 1) <-> (in, out)


def _sizes(width_multiplier: float, depth_multiplier: float) -> tuple[int, int]:
    """(number of blocks, channels of the last), which tell the variants apart."""
    blocks = blocks_of(width_multiplier, depth_multiplier)
    return len(blocks), blocks[-1].channels


def _describe(state, config) -> dict:
    excited = next((name for name in state if "._se_" in name), None)
    if excited is not None:
        raise UserError(
            f"it has squeeze-and-excitation ({excited}): of EfficientNets only the Lite family is read here"
        )
    width, channels = state[LAST].shape[:2]
    found = depth_of(state, "_blocks."), channels
    variant = next((variant for variant in VARIANTS if _sizes(*variant[:2]) == found), None)
    if variant is None:
        raise UserError(
            f"it has {found[0]} blocks, the last of {channels} channels: Lite0 to Lite4 have "
            f"{', '.join('{} and {}'.format(*_sizes(*variant[:2])) for variant in VARIANTS)}"
        )
    return {
        "type": "efficientnet_lite",
        "image_size": variant[2],
        "width": width,
        "width_multiplier": variant[0],
        "depth_multiplier": variant[1],
        "num_classes": len(state.get("_fc.weight", ())),
        **pixel_statistics(config, LITE, certain=True),
    }


def _rules(description: dict) -> list[Rule]:
    expand = [
        Rule(EXPAND, "block_{i}/expand/kernel", POINTWISE),
        *batch_norm("_blocks.{i}._bn0", "block_{i}/expand/norm"),
    ]
    others = [
        Rule(DEPTHWISE, "block_{i}/depthwise/kernel", CONV),
        *batch_norm("_blocks.{i}._bn1", "block_{i}/depthwise/norm"),
        Rule("_blocks.{i}._project_conv.weight", "block_{i}/project/kernel", POINTWISE),
        *batch_norm("_blocks.{i}._bn2", "block_{i}/project/norm"),
    ]
    blocks = blocks_of(description["width_multiplier"], description["depth_multiplier"])
    return [
        Rule(STEM, "stem/kernel", CONV),
        *batch_norm("_bn0", "stem/norm"),
        *per_layer(others, len(blocks)),
        *(rule for i, block in enumerate(blocks) if block.expansion > 1 for rule in layer(expand, i)),
        Rule(LAST, "last/kernel", POINTWISE),
        *batch_norm("_bn1", "last/norm"),
        *(linear("_fc", "fc") if description["num_classes"] else ()),
    ]


EFFICIENTNET_LITE = Layout(
    name="efficientnet-lite",
    summary="EfficientNet-Lite0 to Lite4 of the PyTorch ports, with or without the classifier; pixels (x - 127) / 128",
    marks=(STEM, DEPTHWISE.format(i=0), EXPAND.format(i=1), LAST),
    describe=_describe,
    rules=_rules,
    ignored={".num_batches_tracked": "for training only"},
)
