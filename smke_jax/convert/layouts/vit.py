"""Plain Vision Transformers of timm, DINO and DINOv2, and of google-research/vision_transformer (spec A.7)."""

import re

from smke_jax.convert.pixels import HALF, IMAGENET, pixel_statistics
from smke_jax.convert.rules import (
    FIRST,
    Kind,
    Layout,
    Rule,
    layer_norm,
    linear,
    patch_embed,
    per_layer,
    qkv,
    without_prefix,
)
from smke_jax.convert.shapes import WIDTHS_OF_64, depth_of, grid_of, heads_of

PRETRAINING = "for masked pretraining only"
CLASSIFIER = "a head that gives no feature"
QUERY_KEY_VALUE = ("query", "key", "value")


def _describe_timm(state, config) -> dict:
    width, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    return {
        "type": "vit",
        "image_size": patch_size * grid_of(state["pos_embed"].shape[1]),
        "patch_size": patch_size,
        "width": width,
        "depth": depth_of(state, "blocks."),
        "num_heads": heads_of(width, config, of_64=WIDTHS_OF_64),
        "mlp_dim": len(state["blocks.0.mlp.fc1.weight"]),
        "norm_eps": 1e-6,
        "activation": "gelu",
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in state else None,
        **pixel_statistics(config, IMAGENET),
    }


def layer_scale(description: dict, first: str, second: str) -> list[Rule]:
    """Both LayerScales of a block, where the network has them."""
    scales = Rule(first, "block_{i}/ls1/gamma"), Rule(second, "block_{i}/ls2/gamma")
    return list(scales) if description["layer_scale"] is not None else []


def _rules_timm(description: dict) -> list[Rule]:
    block = [
        *layer_norm("blocks.{i}.norm1", "block_{i}/norm1"),
        *qkv("blocks.{i}.attn.qkv.weight", "blocks.{i}.attn.qkv.bias", "block_{i}/attention"),
        *linear("blocks.{i}.attn.proj", "block_{i}/attention/out"),
        *layer_norm("blocks.{i}.norm2", "block_{i}/norm2"),
        *linear("blocks.{i}.mlp.fc1", "block_{i}/mlp/fc1"),
        *linear("blocks.{i}.mlp.fc2", "block_{i}/mlp/fc2"),
        *layer_scale(description, "blocks.{i}.ls1.gamma", "blocks.{i}.ls2.gamma"),
    ]
    return [
        Rule("cls_token", "cls_token"),
        Rule("pos_embed", "position_embedding", FIRST),
        *patch_embed("patch_embed.proj"),
        *per_layer(block, description["depth"]),
        *layer_norm("norm", "norm"),
    ]


def _whole_blocks(state) -> dict:
    """DINOv2's own training cuts the blocks into chunks: blocks.{chunk}.{block}, the latter counted over all."""
    return {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name): x for name, x in state.items()}


TIMM = Layout(
    name="vit-timm",
    summary="ViT of timm, DINO and DINOv2; mean and std from timm's config.json, else ImageNet's",
    marks=("cls_token", "pos_embed", "blocks.0.attn.qkv.bias"),
    describe=_describe_timm,
    rules=_rules_timm,
    clean=_whole_blocks,
    ignored={"head.": CLASSIFIER, "mask_token": PRETRAINING},
)


def _describe_npz(state, config) -> dict:
    patch_size, _, _, width = state["embedding/kernel"].shape
    return {
        "type": "vit",
        "image_size": patch_size * grid_of(state["Transformer/posembed_input/pos_embedding"].shape[1]),
        "patch_size": patch_size,
        "width": width,
        "depth": depth_of(state, "Transformer/encoderblock_"),
        "num_heads": state["Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"].shape[1],
        "mlp_dim": state["Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"].shape[1],
        "norm_eps": 1e-6,
        "activation": "gelu_tanh",  # Flax's, with which they were trained; timm runs them with the exact one
        "layer_scale": None,
        **pixel_statistics(config, HALF, certain=True),
    }


def _heads(count: int, axis: int) -> Kind:
    """`axis` is heads, the next one their channels <-> both as one axis."""

    def join(x):
        if x.shape[axis : axis + 1] != (count,):
            raise ValueError(f"it is not of {count} heads")
        return (x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :]),)

    return Kind(join, lambda x: x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :]))


def _rules_npz(description: dict) -> list[Rule]:
    def pair(torch, flax, first="kernel"):
        return [Rule(f"{layer}{torch}/{name}", f"block_{{i}}/{flax}/{name}") for name in (first, "bias")]

    layer = "Transformer/encoderblock_{i}/"
    attention = layer + "MultiHeadDotProductAttention_1/"
    first, second = _heads(description["num_heads"], 0), _heads(description["num_heads"], 1)
    block = [
        *pair("LayerNorm_0", "norm1", "scale"),
        *(Rule(f"{attention}{x}/kernel", f"block_{{i}}/attention/{x}/kernel", second) for x in QUERY_KEY_VALUE),
        *(Rule(f"{attention}{x}/bias", f"block_{{i}}/attention/{x}/bias", first) for x in QUERY_KEY_VALUE),
        Rule(f"{attention}out/kernel", "block_{i}/attention/out/kernel", first),
        Rule(f"{attention}out/bias", "block_{i}/attention/out/bias"),
        *pair("LayerNorm_2", "norm2", "scale"),
        *pair("MlpBlock_3/Dense_0", "mlp/fc1"),
        *pair("MlpBlock_3/Dense_1", "mlp/fc2"),
    ]
    return [
        Rule("cls", "cls_token"),
        Rule("Transformer/posembed_input/pos_embedding", "position_embedding", FIRST),
        Rule("embedding/kernel", "patch_embed/kernel"),
        Rule("embedding/bias", "patch_embed/bias"),
        *per_layer(block, description["depth"]),
        Rule("Transformer/encoder_norm/scale", "norm/scale"),
        Rule("Transformer/encoder_norm/bias", "norm/bias"),
    ]


AUGREG = Layout(
    name="vit-npz",
    summary="ViT of google-research/vision_transformer, AugReg's among them, .npz; mean and std 0.5",
    marks=("cls", "Transformer/posembed_input/pos_embedding", "Transformer/encoderblock_0/LayerNorm_2/scale"),
    describe=_describe_npz,
    rules=_rules_npz,
    clean=without_prefix("opt/target/"),
    ignored={"head/": CLASSIFIER, "pre_logits/": CLASSIFIER},
)
