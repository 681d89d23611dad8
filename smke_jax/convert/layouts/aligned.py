"""Frozen towers and projections, as modeling_aligned.py names them."""

from collections.abc import Callable

from smke_jax.convert.layouts.efficientnet_lite import EFFICIENTNET_LITE
from smke_jax.convert.layouts.student import own_block, own_text_tower, own_vit
from smke_jax.convert.rules import Layout, Rule, inside, layer_norm, linear, per_layer
from smke_jax.convert.temperatures import by_level

MODEL_TYPE = "smke_aligned"  # in config.json


def aligned_rules(description: dict) -> list[Rule]:
    """The table of a whole model of type 'aligned', whose networks are all of types in RULES."""
    return [
        rule
        for name, own in description["networks"].items()
        for rule in inside(f"networks.{name}.", f"{name}/", RULES[own["type"]](own))
    ]


def _projections(own: dict) -> list[Rule]:
    mlp = [*layer_norm("norm", "norm"), *linear("fc1", "fc1"), *linear("fc2", "fc2")]
    side = [*linear("linear", "linear", bias=own.get("bias", True)), *(mlp if own["hidden"] else ())]
    shared = own["shared"]
    return [
        *inside("image.", "image/", side),
        *inside("text.", "text/", side),
        *(own_block("shared", "shared", key_bias=False, layer_scale=shared["layer_scale"] is not None)
          if shared else ()),
        *([*layer_norm("head_norm", "head_norm"), *linear("head_linear", "head_linear")] if own["head"] else ()),
    ]  # fmt: skip


def _clip_text(own: dict) -> list[Rule]:
    return [
        *(Rule(f"{name}_embedding.weight", f"{name}_embedding") for name in ("word", "position")),
        *per_layer(own_block("blocks.{i}", "block_{i}"), own["depth"]),
        *layer_norm("norm", "norm"),
    ]


RULES: dict[str, Callable[[dict], list[Rule]]] = {
    "efficientnet_lite": EFFICIENTNET_LITE.rules,
    "vit": own_vit,
    "bert": own_text_tower,
    "clip_text": _clip_text,
    "projections": _projections,
}


def _describe(state, config) -> dict:
    kept = {key: config[key] for key in ("networks", "level", "max_length", "vocab_size")}
    return {"type": "aligned", **kept, "logit_scales": by_level(config["logit_scales"])}


ALIGNED_HF = Layout(
    name="smke-aligned-hf",
    summary="frozen towers and projections as `smke export --format=hf` writes them",
    marks=(),  # names depend on what the networks are called
    fits=lambda state, config: config.get("model_type") == MODEL_TYPE,
    describe=_describe,
    rules=aligned_rules,
)
