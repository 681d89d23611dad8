"""BEiT and BEiT v2: the files of microsoft/unilm (spec 26.1)."""

import math

from smke_jax.convert.rules import QKV_LINEAR, Layout, Rule, layer_norm, linear, patch_embed, per_layer, without_prefix
from smke_jax.convert.shapes import depth_of
from smke_jax.models.teachers import relative_position_index


def _describe(state, config) -> dict:
    width, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    table = state["rel_pos_bias.relative_position_bias_table"]
    return {
        "type": "beit",
        "image_size": patch_size * _grid(len(table)),
        "patch_size": patch_size,
        "width": width,
        "depth": depth_of(state, "blocks."),
        "num_heads": table.shape[1],
        "mlp_dim": len(state["blocks.0.mlp.fc1.weight"]),
        "shared_bias": True,
    }


def _grid(rows: int) -> int:
    """Side of the patch grid whose bias table has that many rows: (2g-1)² + 3."""
    return (math.isqrt(rows - 3) + 1) // 2


def _rules(description: dict) -> list[Rule]:
    block = [
        *layer_norm("blocks.{i}.norm1", "block_{i}/norm1"),
        Rule(
            "blocks.{i}.attn.qkv.weight", tuple(f"block_{{i}}/attention/{x}/kernel" for x in ("query", "key", "value")),
            QKV_LINEAR,
        ),
        Rule("blocks.{i}.attn.q_bias", "block_{i}/attention/query/bias"),
        Rule("blocks.{i}.attn.v_bias", "block_{i}/attention/value/bias"),
        *linear("blocks.{i}.attn.proj", "block_{i}/attention/out"),
        Rule("blocks.{i}.gamma_1", "block_{i}/ls1/gamma"),
        *layer_norm("blocks.{i}.norm2", "block_{i}/norm2"),
        *linear("blocks.{i}.mlp.fc1", "block_{i}/mlp/fc1"),
        *linear("blocks.{i}.mlp.fc2", "block_{i}/mlp/fc2"),
        Rule("blocks.{i}.gamma_2", "block_{i}/ls2/gamma"),
    ]  # fmt: skip
    return [
        Rule("cls_token", "cls_token"),
        *patch_embed("patch_embed.proj"),
        Rule("rel_pos_bias.relative_position_bias_table", "relative_bias/table"),
        *per_layer(block, description["depth"]),
        *layer_norm("norm", "norm"),
    ]


def _constants(description: dict) -> dict:
    grid = description["image_size"] // description["patch_size"]
    return {"rel_pos_bias.relative_position_index": relative_position_index(grid)}


UNILM = Layout(
    name="beit-unilm",
    summary="BEiT and BEiT v2 as pretrained by microsoft/unilm: one relative position table for all blocks",
    marks=("cls_token", "rel_pos_bias.relative_position_bias_table", "blocks.0.attn.q_bias"),
    describe=_describe,
    rules=_rules,
    clean=without_prefix("module."),
    ignored={
        "mask_token": "for masked pretraining only",
        "lm_head.": "for masked pretraining only",
        "cls_pt_layers.": "for masked pretraining only",
    },
    constants=_constants,
)
