"""CLIP with a Vision Transformer: OpenAI's archives and transformers' CLIPModel (spec A.7)."""

import numpy as np

from smke_jax.convert import pixels
from smke_jax.convert.rules import LINEAR, ROW, Layout, Rule, layer_norm, linear, patch_embed, per_layer, qkv
from smke_jax.convert.shapes import activation_of, depth_of, grid_of, section, stated
from smke_jax.errors import UserError


def _describe(config: dict, embed_dim: int, image: dict, text: dict) -> dict:
    if "num_heads" in config:
        raise UserError("its two towers differ in their heads, and the file tells both: leave --num_heads away")
    statistics = pixels.pixel_statistics(config, pixels.CLIP, certain=True)
    return {"type": "clip", "embed_dim": embed_dim, "image": image, "text": text, **statistics}


def _tower(state, layers: str, fc1: str, config: dict, **fields) -> dict:
    """What both towers have; `config` is of this tower."""
    width = state[f"{layers}0.{fc1}.weight"].shape[1]
    return {
        "width": width,
        "depth": depth_of(state, layers, config.get("num_hidden_layers", 0)),
        "num_heads": config.get("num_attention_heads", width // 64),  # the latter in OpenAI's code, whatever the width
        "mlp_dim": len(state[f"{layers}0.{fc1}.weight"]),
        "norm_eps": config.get("layer_norm_eps", 1e-5),
        "activation": activation_of(config, "quick_gelu"),
        **fields,
    }


def _image_tower(state, kernel: str, positions: str, layers: str, fc1: str, config: dict) -> dict:
    patch_size = state[kernel].shape[-1]
    image_size = patch_size * grid_of(len(state[positions]))
    return _tower(state, layers, fc1, config, image_size=image_size, patch_size=patch_size)


def _text_tower(state, words: str, positions: str, layers: str, fc1: str, config: dict) -> dict:
    sizes = {"vocab_size": len(state[words]), "max_positions": len(state[positions])}
    return _tower(state, layers, fc1, config, **sizes)


def _describe_openai(state, config) -> dict:
    image = ("visual.conv1.weight", "visual.positional_embedding", "visual.transformer.resblocks.", "mlp.c_fc")
    text = ("token_embedding.weight", "positional_embedding", "transformer.resblocks.", "mlp.c_fc")
    embed_dim = state["text_projection"].shape[1]
    return _describe(config, embed_dim, _image_tower(state, *image, {}), _text_tower(state, *text, {}))


def _blocks_openai(torch: str, flax: str, depth: int) -> list[Rule]:
    block, path = f"{torch}transformer.resblocks.{{i}}", f"{flax}/block_{{i}}"
    return per_layer(
        [
            *layer_norm(f"{block}.ln_1", f"{path}/norm1"),
            *qkv(f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias", f"{path}/attention"),
            *linear(f"{block}.attn.out_proj", f"{path}/attention/out"),
            *layer_norm(f"{block}.ln_2", f"{path}/norm2"),
            *linear(f"{block}.mlp.c_fc", f"{path}/mlp/fc1"),
            *linear(f"{block}.mlp.c_proj", f"{path}/mlp/fc2"),
        ],
        depth,
    )


def _rules_openai(description: dict) -> list[Rule]:
    return [
        Rule("visual.class_embedding", "image_encoder/cls_token", ROW),
        Rule("visual.positional_embedding", "image_encoder/position_embedding"),
        *patch_embed("visual.conv1", "image_encoder/patch_embed", bias=False),
        *layer_norm("visual.ln_pre", "image_encoder/embedding_norm"),
        *_blocks_openai("visual.", "image_encoder", description["image"]["depth"]),
        *layer_norm("visual.ln_post", "image_encoder/norm"),
        Rule("visual.proj", "image_projection/kernel"),
        Rule("token_embedding.weight", "text_encoder/word_embedding"),
        Rule("positional_embedding", "text_encoder/position_embedding"),
        *_blocks_openai("", "text_encoder", description["text"]["depth"]),
        *layer_norm("ln_final", "text_encoder/norm"),
        Rule("text_projection", "text_projection/kernel"),
        Rule("logit_scale", "logit_scale"),
    ]


OPENAI = Layout(
    name="clip-openai",
    summary="CLIP ViT of OpenAI, or tuned from it: its own GELU; a TorchScript .pt needs --trust_code",
    marks=("visual.class_embedding", "token_embedding.weight", "logit_scale"),
    fits=lambda state, config: "model_cfg" not in config,
    describe=_describe_openai,
    rules=_rules_openai,
    constants=lambda description: {
        "input_resolution": np.array(description["image"]["image_size"]),
        "context_length": np.array(description["text"]["max_positions"]),
        "vocab_size": np.array(description["text"]["vocab_size"]),
    },
)


# Channels of a head in open_clip's vision towers by their width, ViT-H, -g and -bigG; of all others 64.
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}


def _describe_open_clip(state, config) -> dict:
    """Sizes from shapes, and the rest from open_clip_config.json where it lies beside the file."""
    settings = section(config, "model_cfg")
    activation = {"activation": "quick_gelu" if settings.get("quick_gelu") else "gelu"}
    pixels_said = {
        f"image_{name}": x for name, x in section(config, "preprocess_cfg").items() if name in ("mean", "std")
    }
    found = _describe_openai(state, {**config, **pixels_said})
    vision, text = (section(settings, name) for name in ("vision_cfg", "text_cfg"))
    width = found["image"]["width"]
    image_heads = width // vision.get("head_width", HEAD_WIDTHS.get(width, 64))
    text_heads = text.get("heads", found["text"]["num_heads"])
    return {
        **found,
        "image": {**found["image"], **activation, "num_heads": image_heads},
        "text": {**found["text"], **activation, "num_heads": text_heads},
    }


OPEN_CLIP = Layout(
    name="clip-openclip",
    summary="CLIP ViT of open_clip, such as LAION's: the exact GELU, unless open_clip_config.json says otherwise",
    marks=OPENAI.marks,
    describe=_describe_open_clip,
    rules=_rules_openai,
    fits=lambda state, config: "input_resolution" not in state,
    ignored={"attn_mask": "computed"},
)


def _describe_transformers(state, config) -> dict:
    image, text = "vision_model.embeddings.", "text_model.embeddings."
    return _describe(
        config,
        len(state["visual_projection.weight"]),
        _image_tower(
            state, f"{image}patch_embedding.weight", f"{image}position_embedding.weight",
            "vision_model.encoder.layers.", "mlp.fc1", stated(config, "vision_config"),
        ),
        _text_tower(
            state, f"{text}token_embedding.weight", f"{text}position_embedding.weight",
            "text_model.encoder.layers.", "mlp.fc1", stated(config, "text_config"),
        ),
    )  # fmt: skip


def _blocks_transformers(torch: str, flax: str, depth: int) -> list[Rule]:
    layer, path = f"{torch}.encoder.layers.{{i}}", f"{flax}/block_{{i}}"
    return per_layer(
        [
            *layer_norm(f"{layer}.layer_norm1", f"{path}/norm1"),
            *linear(f"{layer}.self_attn.q_proj", f"{path}/attention/query"),
            *linear(f"{layer}.self_attn.k_proj", f"{path}/attention/key"),
            *linear(f"{layer}.self_attn.v_proj", f"{path}/attention/value"),
            *linear(f"{layer}.self_attn.out_proj", f"{path}/attention/out"),
            *layer_norm(f"{layer}.layer_norm2", f"{path}/norm2"),
            *linear(f"{layer}.mlp.fc1", f"{path}/mlp/fc1"),
            *linear(f"{layer}.mlp.fc2", f"{path}/mlp/fc2"),
        ],
        depth,
    )


def _rules_transformers(description: dict) -> list[Rule]:
    image, text = "vision_model.embeddings.", "text_model.embeddings."
    return [
        Rule(f"{image}class_embedding", "image_encoder/cls_token", ROW),
        Rule(f"{image}position_embedding.weight", "image_encoder/position_embedding"),
        *patch_embed(f"{image}patch_embedding", "image_encoder/patch_embed", bias=False),
        *layer_norm("vision_model.pre_layrnorm", "image_encoder/embedding_norm"),
        *_blocks_transformers("vision_model", "image_encoder", description["image"]["depth"]),
        *layer_norm("vision_model.post_layernorm", "image_encoder/norm"),
        Rule("visual_projection.weight", "image_projection/kernel", LINEAR),
        Rule(f"{text}token_embedding.weight", "text_encoder/word_embedding"),
        Rule(f"{text}position_embedding.weight", "text_encoder/position_embedding"),
        *_blocks_transformers("text_model", "text_encoder", description["text"]["depth"]),
        *layer_norm("text_model.final_layer_norm", "text_encoder/norm"),
        Rule("text_projection.weight", "text_projection/kernel", LINEAR),
        Rule("logit_scale", "logit_scale"),
    ]


def _position_ids(description: dict) -> dict:
    image, text = description["image"], description["text"]
    counts = {"vision": 1 + (image["image_size"] // image["patch_size"]) ** 2, "text": text["max_positions"]}
    return {f"{tower}_model.embeddings.position_ids": np.arange(count)[None] for tower, count in counts.items()}


TRANSFORMERS = Layout(
    name="clip-hf",
    summary="CLIPModel of transformers",
    marks=("vision_model.pre_layrnorm.weight", "text_model.final_layer_norm.weight", "logit_scale"),
    describe=_describe_transformers,
    rules=_rules_transformers,
    constants=_position_ids,
)
