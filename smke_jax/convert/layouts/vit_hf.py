"""ViTModel (DINO among them) and Dinov2Model of transformers."""

from smke_jax.convert import names
from smke_jax.convert.layouts.vit import CLASSIFIER, PRETRAINING, layer_scale
from smke_jax.convert.pixels import IMAGENET, pixel_statistics
from smke_jax.convert.rules import FIRST, Layout, Rule, layer_norm, linear, patch_embed, per_layer, without_prefix
from smke_jax.convert.shapes import activation_of, depth_of, grid_of, heads_of, stated


def _as_in_file(state, prefix: str, in_memory: dict[str, str]) -> dict:
    return {names.in_file(name, in_memory): x for name, x in without_prefix(prefix)(state).items()}


def _describe(state, config, **fields) -> dict:
    """What ViTModel and Dinov2Model have in common."""
    width, _, patch_size, _ = state["embeddings.patch_embeddings.projection.weight"].shape
    return {
        "type": "vit",
        "image_size": patch_size * grid_of(state["embeddings.position_embeddings"].shape[1]),
        "patch_size": patch_size,
        "width": width,
        "depth": depth_of(state, "encoder.layer.", stated(config, "num_hidden_layers")),
        "num_heads": heads_of(width, config, "num_attention_heads"),
        "activation": activation_of(config),
        **fields,
        **pixel_statistics(config, IMAGENET),
    }


def _rules(description: dict, parts: dict[str, str]) -> list[Rule]:
    """`parts` holds what ViTModel and Dinov2Model call differently."""
    layer = "encoder.layer.{i}."
    attention = layer + "attention.attention."
    block = [
        *layer_norm(layer + parts["norm1"], "block_{i}/norm1"),
        *linear(attention + "query", "block_{i}/attention/query"),
        *linear(attention + "key", "block_{i}/attention/key"),
        *linear(attention + "value", "block_{i}/attention/value"),
        *linear(layer + "attention.output.dense", "block_{i}/attention/out"),
        *layer_norm(layer + parts["norm2"], "block_{i}/norm2"),
        *linear(layer + parts["fc1"], "block_{i}/mlp/fc1"),
        *linear(layer + parts["fc2"], "block_{i}/mlp/fc2"),
        *layer_scale(description, layer + "layer_scale1.lambda1", layer + "layer_scale2.lambda1"),
    ]
    return [
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.position_embeddings", "position_embedding", FIRST),
        *patch_embed("embeddings.patch_embeddings.projection"),
        *per_layer(block, description["depth"]),
        *layer_norm("layernorm", "norm"),
    ]


VIT_NAMES = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "fc1": "intermediate.dense", "fc2": "output.dense",
}  # fmt: skip
DINOV2_NAMES = {"norm1": "norm1", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}

VIT = Layout(
    name="vit-hf",
    summary="ViTModel of transformers, DINO among them; mean and std from preprocessor_config.json, else ImageNet's",
    marks=("embeddings.position_embeddings", "encoder.layer.0.attention.attention.key.bias",
           "encoder.layer.0.layernorm_before.bias"),
    describe=lambda state, config: _describe(
        state, config, layer_scale=None, norm_eps=config.get("layer_norm_eps", 1e-12),
        mlp_dim=len(state["encoder.layer.0.intermediate.dense.weight"]),
    ),
    rules=lambda description: _rules(description, VIT_NAMES),
    clean=lambda state: _as_in_file(state, "vit.", names.VIT),
    ignored={"pooler.": CLASSIFIER, "classifier.": CLASSIFIER, "embeddings.mask_token": PRETRAINING},
)  # fmt: skip

DINOV2 = Layout(
    name="dinov2-hf",
    summary="Dinov2Model of transformers, without registers",
    marks=("embeddings.position_embeddings", "encoder.layer.0.attention.attention.key.bias",
           "encoder.layer.0.layer_scale1.lambda1"),
    describe=lambda state, config: _describe(
        state, config, layer_scale=1.0, norm_eps=config.get("layer_norm_eps", 1e-6),
        mlp_dim=len(state["encoder.layer.0.mlp.fc1.weight"]),
    ),
    rules=lambda description: _rules(description, DINOV2_NAMES),
    clean=lambda state: _as_in_file(state, "dinov2.", names.ATTENTION),
    ignored={"classifier.": CLASSIFIER, "embeddings.mask_token": PRETRAINING},
)  # fmt: skip
