"""Frozen towers and projections, as modeling_aligned.py names them.  This is written, and not read back."""

from collections.abc import Callable

from smke_jax.convert.layouts.efficientnet_lite import EFFICIENTNET_LITE
from smke_jax.convert.layouts.student import own_block, own_text_tower, own_vit
from smke_jax.convert.rules import Rule, inside, layer_norm, linear


def aligned_rules(description: dict) -> list[Rule]:
    """The table of a whole model of type 'aligned', whose networks are all of types in RULES."""
    return [
        rule
        for name, own in description["networks"].items()
        for rule in inside(f"networks.{name}.", f"{name}/", RULES[own["type"]](own))
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
    "vit": own_vit,
    "bert": own_text_tower,
    "projections": _projections,
}
