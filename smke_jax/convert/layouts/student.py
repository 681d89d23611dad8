"""The image-text student: our own PyTorch export, and the checkpoints of the thesis' author (spec 26.7)."""

from smke_jax.convert.layouts.bert import BERT
from smke_jax.convert.layouts.data2vec2 import FAIRSEQ
from smke_jax.convert.rules import (
    Layout,
    Rule,
    State,
    inside,
    layer_norm,
    linear,
    patch_embed,
    per_layer,
    qkv_without_key_bias,
    without_prefix,
)
from smke_jax.convert.shapes import WIDTHS_OF_64, heads_of, section
from smke_jax.convert.temperatures import by_level

TOWERS = {"image": ("image_model.", FAIRSEQ), "text": ("text_model.", BERT)}  # in the thesis' files


def own_block(torch: str, flax: str, *, key_bias: bool = True, layer_scale: bool = False) -> list[Rule]:
    """Block of modeling_smke.py."""
    return [
        *layer_norm(f"{torch}.norm1", f"{flax}/norm1"),
        *linear(f"{torch}.attention.query", f"{flax}/attention/query"),
        *linear(f"{torch}.attention.key", f"{flax}/attention/key", bias=key_bias),
        *linear(f"{torch}.attention.value", f"{flax}/attention/value"),
        *linear(f"{torch}.attention.out", f"{flax}/attention/out"),
        *layer_norm(f"{torch}.norm2", f"{flax}/norm2"),
        *linear(f"{torch}.mlp.fc1", f"{flax}/mlp/fc1"),
        *linear(f"{torch}.mlp.fc2", f"{flax}/mlp/fc2"),
        *(Rule(f"{torch}.scale{i}", f"{flax}/ls{i}/gamma") for i in (1, 2) if layer_scale),
    ]


def own_text_tower(text: dict) -> list[Rule]:
    """TextTower of modeling_smke.py."""
    return [
        *(Rule(f"{name}_embedding.weight", f"{name}_embedding") for name in ("word", "position", "type")),
        *(linear("word_projection", "word_projection", bias=False) if text.get("word_width") else ()),
        *layer_norm("embedding_norm", "embedding_norm"),
        *per_layer(own_block("blocks.{i}", "block_{i}"), text["depth"]),
        *(layer_norm("norm", "norm") if text["norm_order"] == "pre" else ()),
    ]


def own_vit(image: dict) -> list[Rule]:
    """Vit of modeling_smke.py and of modeling_aligned.py."""
    block = own_block("blocks.{i}", "block_{i}", layer_scale=image.get("layer_scale") is not None)
    return [
        *patch_embed("patch_embed", bias=image.get("patch_bias", True)),
        Rule("cls_token", "cls_token"),
        Rule("position_embedding", "position_embedding"),
        *(layer_norm("embedding_norm", "embedding_norm") if image.get("norm_embeddings") else ()),
        *per_layer(block, image["depth"]),
        *layer_norm("norm", "norm"),
    ]


def _own_data2vec2(image: dict) -> list[Rule]:
    return [
        *patch_embed("patch_embed"),
        Rule("cls_token", "cls_token"),
        *layer_norm("norm", "norm"),
        *per_layer(own_block("blocks.{i}", "block_{i}"), image["depth"]),
    ]


OWN_IMAGE_TOWERS = {"data2vec2": _own_data2vec2, "vit": own_vit}


def _hf_rules(description: dict) -> list[Rule]:
    image, text, shared = description["image"], description["text"], description["shared"]
    width = description.get("width") or image["width"]
    projected = [side for side, own in (("image", image), ("text", text)) if own["width"] != width]
    types = [Rule("type_embedding.weight", "type_embedding"), Rule("type_scale", "type_scale/gamma")]
    return [
        *inside("image.", "image_encoder/", OWN_IMAGE_TOWERS[image["type"]](image)),
        *inside("text.", "text_encoder/", own_text_tower(text)),
        *(rule for side in projected for rule in linear(f"projections.{side}", f"{side}_projection")),
        *own_block("shared", "shared", key_bias=False, layer_scale=shared["layer_scale"] is not None),
        *(types if description["token_types"] else ()),
        *layer_norm("head_norm", "head_norm"),
        *linear("head", "head"),
    ]


def _hf_describe(state, config) -> dict:
    fields = ("vocab_size", "target_dim", "token_types", "level")
    pixels = {name: config[name] for name in ("mean", "std", "width") if name in config}
    text = dict(config["text"])
    return {
        "type": "student",
        "dtype": "float32",
        "max_length": text.pop("max_length"),
        **{key: config[key] for key in fields},
        **pixels,
        "logit_scales": by_level(config["logit_scales"]),
        "image": {"type": "data2vec2", **config["image"]},
        "text": {"type": "bert", **text},
        "shared": {"type": "transformer", **config["shared"], "init_std": 0.02},
    }


SMKE_HF = Layout(
    name="smke-hf",
    summary="image-text student as `smke export --format=hf` writes it",
    marks=("image.patch_embed.weight", "text.word_embedding.weight", "shared.norm1.weight", "head_norm.weight"),
    describe=_hf_describe,
    rules=_hf_rules,
)


def _part(state: State, prefix: str) -> dict:
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def _thesis_clean(state) -> dict:
    state = without_prefix("model.")(state)
    for prefix, layout in TOWERS.values():
        tower = layout.clean(_part(state, prefix))
        state = {name: x for name, x in state.items() if not name.startswith(prefix)}
        state |= {prefix + name: x for name, x in tower.items()}
    return state


def _thesis_describe(state, config) -> dict:
    temperatures = {"itc": state["logit_scales"].tolist()}
    if "logit_scale_target" in state:  # of a run with a loss against the teacher's targets
        temperatures["target_itc"] = [state["logit_scale_target"].item()]
    temperatures = by_level(temperatures)
    stated = section(config, "hyper_parameters", "smke_jax")
    if stated:
        # His module has a temperature for the targets even where training had no such loss.
        known = stated.get("logit_scales", temperatures)
        return {**stated, "logit_scales": {term: x for term, x in temperatures.items() if term in known}}
    target_dim, width = state["head.weight"].shape
    heads = heads_of(width, config, of_64=WIDTHS_OF_64)
    settings = {"num_heads": heads, "num_attention_heads": heads}
    towers = {part: layout.describe(_part(state, prefix), settings) for part, (prefix, layout) in TOWERS.items()}
    common = {"norm_order": "post", "activation": "gelu"}
    return {
        "type": "student",
        "dtype": "float32",
        "vocab_size": towers["text"]["vocab_size"],
        "target_dim": target_dim,
        "token_types": "token_type_embeddings.weight" in state,
        "level": "out",
        "max_length": 64,
        "logit_scales": temperatures,
        **{part: {k: v for k, v in tower.items() if k not in ("vocab_size", "pooler")} | common
           for part, tower in towers.items()},
        "shared": {
            "type": "transformer", "num_heads": heads, "mlp_dim": len(state["shared.mlp.fc1.weight"]), "norm_eps": 1e-6,
            "activation": "gelu", "layer_scale": 0.2, "init_std": 0.02,
        },
    }  # fmt: skip


def _thesis_rules(description: dict) -> list[Rule]:
    types = [Rule("token_type_embeddings.weight", "type_embedding"), Rule("tte_scale.gamma", "type_scale/gamma")]
    return [
        *inside("image_model.", "image_encoder/", FAIRSEQ.rules(description["image"])),
        *inside("text_model.", "text_encoder/", BERT.rules({**description["text"], "pooler": False})),
        *layer_norm("shared.norm1", "shared/norm1"),
        *qkv_without_key_bias("shared.attn", "shared/attention"),
        *linear("shared.attn.proj", "shared/attention/out"),
        *layer_norm("shared.norm2", "shared/norm2"),
        *linear("shared.mlp.fc1", "shared/mlp/fc1"),
        *linear("shared.mlp.fc2", "shared/mlp/fc2"),
        *(Rule(f"shared.ls{i}.gamma", f"shared/ls{i}/gamma") for i in (1, 2)),
        *(types if description["token_types"] else ()),
        *layer_norm("fc_norm", "head_norm"),
        *linear("head", "head"),
    ]


def _thesis_constants(description: dict) -> dict:
    return {"image_model." + name: x for name, x in FAIRSEQ.constants(description["image"]).items()}


THESIS = Layout(
    name="thesis",
    summary="image-text student in the thesis author's checkpoints: S-SMKE, and Transformer SHRe",
    marks=("image_model.blocks.0.attn.qkv.weight", "shared.attn.qkv.weight", "fc_norm.weight", "logit_scales"),
    describe=_thesis_describe,
    rules=_thesis_rules,
    clean=_thesis_clean,
    ignored={
        "logit_scale": "temperatures, kept in the description",
        "kd_loss_mb.": "the memory bank",
        "teacher.": "the frozen teacher",
        **{prefix + part: why for prefix, layout in TOWERS.values() for part, why in layout.ignored.items()},
    },
    constants=_thesis_constants,
)
