"""Data2Vec2 for images: the files of fairseq (spec 0.2, 26.4).

They split one stack of blocks, with one LayerNorm before it, into `prenet_depth` blocks of the modality's own encoder
and those shared by all modalities.  Here the blocks are numbered through, prenet first, and so they go out again:
fairseq builds the same network with `prenet_depth` 0.
"""

import math
import re

from smke_jax.convert.pixels import IMAGENET, pixel_statistics
from smke_jax.convert.rules import Layout, Rule, layer_norm, linear, patch_embed, per_layer, qkv
from smke_jax.convert.shapes import WIDTHS_OF_64, depth_of, heads_of, section

IMAGE = "modality_encoders.IMAGE."
PRENET = IMAGE + "context_encoder.blocks."
POSITIONS = IMAGE + "fixed_positional_encoder.positions"


def _clean(state) -> dict:
    prenet = depth_of(state, PRENET)

    def numbered_through(name: str) -> str:
        if name.startswith(PRENET):
            return "blocks." + name.removeprefix(PRENET)
        return re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) + prenet}", name)

    return {numbered_through(name): x for name, x in state.items()}


def _describe(state, config) -> dict:
    width, _, patch_size, _ = state[IMAGE + "local_encoder.proj.weight"].shape
    settings = section(config, "cfg", "model")
    stated_depth = settings.get("depth", 0) + section(settings, "modalities", "image").get("prenet_depth", 0)
    return {
        "type": "data2vec2",
        "image_size": patch_size * math.isqrt(state[POSITIONS].shape[1]),
        "patch_size": patch_size,
        "width": width,
        "depth": depth_of(state, "blocks.", stated_depth),
        "num_heads": heads_of(width, {**settings, **config}, of_64=WIDTHS_OF_64),
        "mlp_dim": len(state["blocks.0.mlp.fc1.weight"]),
        "norm_eps": settings.get("norm_eps", 1e-6),
        **pixel_statistics({}, IMAGENET, certain=True),
    }


def _rules(description: dict) -> list[Rule]:
    block = [
        *qkv("blocks.{i}.attn.qkv.weight", "blocks.{i}.attn.qkv.bias", "block_{i}/attention"),
        *linear("blocks.{i}.attn.proj", "block_{i}/attention/out"),
        *layer_norm("blocks.{i}.norm1", "block_{i}/norm1"),
        *linear("blocks.{i}.mlp.fc1", "block_{i}/mlp/fc1"),
        *linear("blocks.{i}.mlp.fc2", "block_{i}/mlp/fc2"),
        *layer_norm("blocks.{i}.norm2", "block_{i}/norm2"),
    ]
    return [
        Rule(IMAGE + "extra_tokens", "cls_token"),
        *patch_embed(IMAGE + "local_encoder.proj"),
        *layer_norm(IMAGE + "context_encoder.norm", "norm"),
        *per_layer(block, description["depth"]),
    ]


def _constants(description: dict) -> dict:
    # Only here: it imports Flax, which other layouts do without.
    from smke_jax.models.vision import sincos_positions

    grid = description["image_size"] // description["patch_size"]
    return {POSITIONS: sincos_positions(grid, description["width"])[None]}


FAIRSEQ = Layout(
    name="data2vec2-fairseq",
    summary="Data2Vec2 for images as pretrained with fairseq, with or without prenet",
    marks=(IMAGE + "local_encoder.proj.weight", POSITIONS, "blocks.0.attn.qkv.bias"),
    describe=_describe,
    rules=_rules,
    clean=_clean,
    ignored={
        "_ema": "the moving average that training regresses",
        IMAGE + "decoder.": "for masked pretraining only",
        "shared_decoder.": "for masked pretraining only",
        "recon_proj.": "for masked pretraining only",
        "modality_encoders.AUDIO.": "of another modality",
        "modality_encoders.TEXT.": "of another modality",
    },
    constants=_constants,
)
