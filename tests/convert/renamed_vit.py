"""The state of transformers' ViTModel and Dinov2Model under the names of others."""

import re

import numpy as np

# Names of transformers -> of timm, written out here and not taken from smke_jax.convert.
TIMM = {
    r"^embeddings\.cls_token": "cls_token",
    r"^embeddings\.mask_token": "mask_token",
    r"^embeddings\.position_embeddings": "pos_embed",
    r"^embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^encoder\.layer\.": "blocks.",
    r"attention\.output\.dense": "attn.proj",
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
    r"intermediate\.dense": "mlp.fc1",
    r"(\d)\.output\.dense": r"\1.mlp.fc2",
    r"layer_scale1\.lambda1": "ls1.gamma",
    r"layer_scale2\.lambda1": "ls2.gamma",
    r"^layernorm": "norm",
    r"^pooler\.dense": "head",
}


def as_timm(state: dict) -> dict:
    """The state of ViTModel or Dinov2Model under the names of timm, q, k and v in one."""
    renamed = {}
    for name, x in state.items():
        for pattern, replacement in TIMM.items():
            name = re.sub(pattern, replacement, name)
        renamed[name] = x
    for name in [name for name in renamed if ".attention.attention.query." in name]:
        parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        renamed[name.replace("attention.attention.query", "attn.qkv")] = np.concatenate(parts)
    return renamed


def as_npz(state: dict, heads: int) -> dict:
    """The state of ViTModel as google-research/vision_transformer keeps it: heads apart, (in, out), HWIO."""
    arrays = {
        "cls": state["embeddings.cls_token"],
        "Transformer/posembed_input/pos_embedding": state["embeddings.position_embeddings"],
        "embedding/kernel": np.moveaxis(state["embeddings.patch_embeddings.projection.weight"], [2, 3, 1, 0], range(4)),
        "embedding/bias": state["embeddings.patch_embeddings.projection.bias"],
        "Transformer/encoder_norm/scale": state["layernorm.weight"],
        "Transformer/encoder_norm/bias": state["layernorm.bias"],
        "pre_logits/kernel": state["pooler.dense.weight"],
        "head/kernel": np.ones((len(state["layernorm.bias"]), 5), np.float32),
        "head/bias": np.ones(5, np.float32),
    }
    for i in range(sum(name.endswith("layernorm_before.bias") for name in state)):
        layer, block = f"encoder.layer.{i}", f"Transformer/encoderblock_{i}"
        for theirs, ours in (("layernorm_before", "LayerNorm_0"), ("layernorm_after", "LayerNorm_2")):
            arrays[f"{block}/{ours}/scale"] = state[f"{layer}.{theirs}.weight"]
            arrays[f"{block}/{ours}/bias"] = state[f"{layer}.{theirs}.bias"]
        for theirs, ours in (("intermediate.dense", "Dense_0"), ("output.dense", "Dense_1")):
            arrays[f"{block}/MlpBlock_3/{ours}/kernel"] = state[f"{layer}.{theirs}.weight"].T
            arrays[f"{block}/MlpBlock_3/{ours}/bias"] = state[f"{layer}.{theirs}.bias"]
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            weight, bias = (state[f"{layer}.attention.attention.{part}.{x}"] for x in ("weight", "bias"))
            arrays[f"{attention}/{part}/kernel"] = np.stack([x.T for x in np.split(weight, heads)], axis=1)
            arrays[f"{attention}/{part}/bias"] = np.stack(np.split(bias, heads))
        out = state[f"{layer}.attention.output.dense.weight"]
        arrays[f"{attention}/out/kernel"] = np.stack(np.split(out.T, heads))
        arrays[f"{attention}/out/bias"] = state[f"{layer}.attention.output.dense.bias"]
    return arrays
