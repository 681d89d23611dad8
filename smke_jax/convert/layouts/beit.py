"""BEiT and BEiT v2: the files of microsoft/unilm and of timm (spec 26.1, 26.2)."""

import math

import numpy as np

from smke_jax.convert.pixels import HALF, IMAGENET, pixel_statistics
from smke_jax.convert.rules import (
    Layout,
    Rule,
    layer_norm,
    linear,
    patch_embed,
    per_layer,
    qkv_without_key_bias,
)
from smke_jax.convert.shapes import depth_of

SHARED, OWN = "rel_pos_bias.", "blocks.{i}.attn."  # where the table lies: one for all blocks, or one in each
TABLE, INDEX = "relative_position_bias_table", "relative_position_index"


def describe_beit(kernel, table, fc1) -> dict:
    """The sizes of a BEiT, from its patch embedding (D, 3, p, p), a bias table ((2g-1)² + 3, H) and an fc1 (F, D)."""
    width, _, patch_size, _ = kernel.shape
    rows, num_heads = table.shape
    grid = (math.isqrt(rows - 3) + 1) // 2
    return {
        "type": "beit",
        "image_size": patch_size * grid,
        "patch_size": patch_size,
        "width": width,
        "num_heads": num_heads,
        "mlp_dim": len(fc1),
    }


def classifier(norm: str, head: str, state) -> dict:
    """'num_classes' of a classifier on the mean of the patches: a LayerNorm `norm` and a Linear `head`, where it is."""
    return {"num_classes": len(state[f"{head}.weight"])} if {f"{norm}.weight", f"{head}.weight"} <= set(state) else {}


def classifier_rules(norm: str, head: str, description: dict) -> list[Rule]:
    """The two layers of that classifier, where the description has it."""
    return [*layer_norm(norm, "fc_norm"), *linear(head, "head")] if description.get("num_classes") else []


def bias_tables(shared: str, own: str, description: dict) -> list[Rule]:
    """The table named `shared`, or the tables named `own` (with '{i}'), as the description has it."""
    if description["shared_bias"]:
        return [Rule(shared, "relative_bias/table")]
    return per_layer([Rule(own, "relative_bias_{i}/table")], description["depth"])


def bias_indices(shared: str, own: str, description: dict) -> dict[str, np.ndarray]:
    """The index beside each table, which the model computes."""
    # Only here: it imports Flax, which other layouts do without.
    from smke_jax.models.beit import relative_position_index

    index = relative_position_index(description["image_size"] // description["patch_size"])
    names = [shared] if description["shared_bias"] else [own.format(i=i) for i in range(description["depth"])]
    return dict.fromkeys(names, index)


def _describe(state, config) -> dict:
    shared = SHARED + TABLE in state
    table = state[(SHARED if shared else OWN.format(i=0)) + TABLE]
    return {
        **describe_beit(state["patch_embed.proj.weight"], table, state["blocks.0.mlp.fc1.weight"]),
        "depth": depth_of(state, "blocks."),
        "shared_bias": shared,
        "final_norm": "norm.weight" in state,  # mean-pooled classifiers have fc_norm, after the mean, in its place
        **classifier("fc_norm", "head", state),
        **_pixel_statistics(state, config),
    }


def _pixel_statistics(state, config) -> dict:
    codes, width = state["lm_head.weight"].shape if "lm_head.weight" in state else (0, 1)
    if codes == width:  # it regresses features: the first Data2Vec
        return pixel_statistics(config, HALF, certain=True)
    v2 = any(name.startswith("cls_pt_") for name in state)
    return pixel_statistics(config, IMAGENET, certain=v2)


def _rules(description: dict) -> list[Rule]:
    block = [
        *layer_norm("blocks.{i}.norm1", "block_{i}/norm1"),
        *qkv_without_key_bias("blocks.{i}.attn", "block_{i}/attention"),
        *linear("blocks.{i}.attn.proj", "block_{i}/attention/out"),
        Rule("blocks.{i}.gamma_1", "block_{i}/ls1/gamma"),
        *layer_norm("blocks.{i}.norm2", "block_{i}/norm2"),
        *linear("blocks.{i}.mlp.fc1", "block_{i}/mlp/fc1"),
        *linear("blocks.{i}.mlp.fc2", "block_{i}/mlp/fc2"),
        Rule("blocks.{i}.gamma_2", "block_{i}/ls2/gamma"),
    ]
    return [
        Rule("cls_token", "cls_token"),
        *patch_embed("patch_embed.proj"),
        *bias_tables(SHARED + TABLE, OWN + TABLE, description),
        *per_layer(block, description["depth"]),
        *(layer_norm("norm", "norm") if description["final_norm"] else ()),
        *classifier_rules("fc_norm", "head", description),
    ]


def _constants(description: dict) -> dict:
    no_bias = np.zeros(description["width"])
    k_biases = {OWN.format(i=i) + "k_bias": no_bias for i in range(description["depth"])}
    return bias_indices(SHARED + INDEX, OWN + INDEX, description) | k_biases


UNILM = Layout(
    name="beit-unilm",
    summary="BEiT and BEiT v2 of microsoft/unilm and of timm, pretrained or fine-tuned",
    marks=("cls_token", "patch_embed.proj.weight", "blocks.0.attn.q_bias"),
    describe=_describe,
    rules=_rules,
    ignored={
        "mask_token": "for masked pretraining only",
        "lm_head.": "for masked pretraining only",
        "cls_pt_": "for masked pretraining only",
        "fc_norm.": "of a classifier that is not there",
        "head.": "of a classifier on [CLS], which gives no feature",
    },
    constants=_constants,
)
