"""Frozen towers and projections, as modeling_aligned.py names them.  This is written, and not read back."""

from collections.abc import Callable

from smke_jax.convert.layouts.efficientnet_lite import EFFICIENTNET_LITE
from smke_jax.convert.layouts.student import own_block, own_text_tower
from smke_jax.convert.rules import Rule, inside, layer_norm, linear, patch_embed, per_layer


def aligned_rules(description: dict) -> list[Rule]:
    """The table of a whole model of type 'aligned', whose networks are all of types in RULES."""
    return [
        rule
        for name, own in description["networks"].items()
        for rule in inside(f"networks.{name}.", f"{name}/", RULES[own["type"]](own))
    ]


def _vit(own: dict) -> list[Rule]:
    block = own_block("blocks.{i}", "block_{i}", layer_scale=own["layer_scale"] is not None)
    return [
        *patch_embed("patch_embed"),
        Rule("cls_token", "cls_token"),
        Rule("position_embedding", "position_embedding"),
        *per_layer(block, own["depth"]),
        *layer_norm("norm", "norm"),
    ]


def _projections(own: dict) -> list[Rule]:
    mlp = [*layer_norm("norm", "norm"), *linear("fc1", "fc1"), *linear("fc2", "fc2")]
    side = [*linear("linear", "linear"), *(mlp if own["hidden"] else ())]
    shared = own["shared"]
    return [
        *inside("image.", "image/", side),
        *inside("text.", "text/", side),
        *(own_block("shared", "shared", key_bias=False, layer_scale=shared["layer_scale"] is not None)
          if shared else ()),
        *([*layer_norm("head_norm", "head_norm"), *linear("head_linear", "head_linear")] if own["head"] else ()),
    ]  # fmt: skip


RULES: dict[str, Callable[[dict], list[Rule]]] = {
    "efficientnet_lite": EFFICIENTNET_LITE.rules,
    "vit": _vit,
    "bert": own_text_tower,
    "projections": _projections,
}
