"""BEiT and the first Data2Vec for images, one architecture under one set of names: transformers (spec 26.3)."""

from smke_jax.convert import names
from smke_jax.convert.layouts.beit import (
    INDEX,
    TABLE,
    bias_indices,
    bias_tables,
    classifier,
    classifier_rules,
    describe_beit,
)
from smke_jax.convert.pixels import HALF, pixel_statistics
from smke_jax.convert.rules import Layout, Rule, layer_norm, linear, patch_embed, per_layer
from smke_jax.convert.shapes import activation_of, depth_of, stated

PREFIXES = ("beit.", "data2vec_vision.")  # of the encoder inside a network for a task
ATTENTION = "encoder.layer.{i}.attention.attention."
SHARED, OWN = "encoder.relative_position_bias.", ATTENTION + "relative_position_bias."
CLASSIFIER = ("pooler.layernorm", "classifier")
IN_MEMORY = {
    r"^shared_position_bias\.": SHARED,
    **names.VIT,
    r"^(encoder\.layer\.\d+)\.relative_position_bias\.": r"\1.attention.attention.relative_position_bias.",
}


def _clean(state) -> dict:
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in state)), "")
    own = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
    encoder = {names.in_file(name, IN_MEMORY): x for name, x in own.items()}
    # The head of masked pretraining has a `layernorm` of its own: the encoder's last norm, where that has none.
    outside = {name: x for name, x in state.items() if not name.startswith(prefix)}
    return encoder | {f"head.{name}" if name in encoder else name: x for name, x in outside.items()}


def _describe(state, config) -> dict:
    shared = SHARED + TABLE in state
    table = state[(SHARED if shared else OWN.format(i=0)) + TABLE]
    fc1 = state["encoder.layer.0.intermediate.dense.weight"]
    return {
        **describe_beit(state["embeddings.patch_embeddings.projection.weight"], table, fc1),
        "depth": depth_of(state, "encoder.layer.", stated(config, "num_hidden_layers")),
        "shared_bias": shared,
        "final_norm": "layernorm.weight" in state,  # with mean pooling there is one after the mean, in the pooler
        **classifier(*CLASSIFIER, state),
        "norm_eps": config.get("layer_norm_eps", 1e-12),
        "activation": activation_of(config),
        **pixel_statistics(config, HALF),
    }


def _rules(description: dict) -> list[Rule]:
    layer = [
        *layer_norm("encoder.layer.{i}.layernorm_before", "block_{i}/norm1"),
        *linear(ATTENTION + "query", "block_{i}/attention/query"),
        *linear(ATTENTION + "key", "block_{i}/attention/key", bias=False),
        *linear(ATTENTION + "value", "block_{i}/attention/value"),
        *linear("encoder.layer.{i}.attention.output.dense", "block_{i}/attention/out"),
        Rule("encoder.layer.{i}.lambda_1", "block_{i}/ls1/gamma"),
        *layer_norm("encoder.layer.{i}.layernorm_after", "block_{i}/norm2"),
        *linear("encoder.layer.{i}.intermediate.dense", "block_{i}/mlp/fc1"),
        *linear("encoder.layer.{i}.output.dense", "block_{i}/mlp/fc2"),
        Rule("encoder.layer.{i}.lambda_2", "block_{i}/ls2/gamma"),
    ]
    return [
        Rule("embeddings.cls_token", "cls_token"),
        *patch_embed("embeddings.patch_embeddings.projection"),
        *bias_tables(SHARED + TABLE, OWN + TABLE, description),
        *per_layer(layer, description["depth"]),
        *(layer_norm("layernorm", "norm") if description["final_norm"] else ()),
        *classifier_rules(*CLASSIFIER, description),
    ]


HF = Layout(
    name="beit-hf",
    summary="BeitModel and Data2VecVisionModel of transformers, alone or inside a network for a task",
    marks=("embeddings.patch_embeddings.projection.weight", "encoder.layer.0.lambda_1"),
    describe=_describe,
    rules=_rules,
    clean=_clean,
    ignored={
        "embeddings.mask_token": "for masked pretraining only",
        "lm_head.": "for masked pretraining only",
        "head.": "for masked pretraining only",
        "pooler.": "of a classifier that is not there",
        "classifier.": "of a classifier on [CLS], which gives no feature",
    },
    constants=lambda description: bias_indices(SHARED + INDEX, OWN + INDEX, description),
)
