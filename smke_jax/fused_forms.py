"""The sizes of networks with a fusion encoder, for each of the forms: the published ones and small ones."""

from typing import Any

from ml_collections import ConfigDict

from smke_jax.forms import Flickr8k, Scenes, Smoke, Thesis
from smke_jax.parts import part


def fused(form: Thesis, kind: str, **fields: Any) -> ConfigDict:
    """A network `fused_towers` of the size of `form`; kind: of the fusion, 'concat' or 'cross'."""
    return SIZES[form.name](kind, **fields)


def fused_run(form: Thesis) -> ConfigDict:
    """A config without parts for such a network; pretrained towers learn at a tenth of the rate."""
    c = form.fine_tuning()
    if form.name == "flickr8k":  # two cores see some six examples a second
        c.batch_size, c.total_steps, c.checkpoint.every = 96, 160, 80
        c.optimizer.learning_rate = 5e-4
    return c


def published(c: ConfigDict, **fields: Any) -> None:
    """Gives `c` ALBEF's optimizer (spec B.3): every parameter at the same rate, that of PyTorch's AdamW otherwise."""
    c.optimizer.update(weight_decay=0.02, betas=(0.9, 0.999), eps=1e-8, reference_batch=0, lr_rules=(), **fields)


def reranked(form: Thesis, **fields: Any) -> ConfigDict:
    """Re-ranking on the split that runs of `form` are evaluated on, of as many of each query as it has time for."""
    k = {"": 128, "smoke": 4}.get(form.name, 32)
    sweep = tuple(number for number in (2, 4, 8, 16, 32, 64) if number < k)
    return part("rerank", **{"split": form.held_out, "k": k, "sweep": sweep} | fields)


def cell(form: Thesis) -> int:
    """Pixels per side of the blocks that are hidden: seven to a side where images have them, of one patch or more."""
    return {"": 32, "flickr8k": 14, "scenes": 8, "smoke": 16}[form.name]


def _published(kind, **fields):
    """ALBEF: a ViT-B/16, the first half of a BERT-base, and the other half as its fusion (spec B.3)."""
    given = {
        "image": part("vit", image_size=256), "text": part("bert", depth=6), "fusion": part(kind, width=768, depth=6),
        "image_start": "weights/deit-base", "text_start": "weights/bert-base-uncased",
        "fusion_start": "weights/bert-base-uncased", "dtype": "bfloat16",
    }  # fmt: skip
    return part("fused_towers", **given | fields)


def seed(kind: str, **fields: Any) -> ConfigDict:
    """The seed's: a ViT-S/16, the first half of a BERT-small, and the other half as its fusion (spec B.2)."""
    text = {"width": 512, "num_heads": 8, "mlp_dim": 2048}
    given = {
        "image": part("vit", width=384, num_heads=6, mlp_dim=1536, norm_eps=1e-12),
        "text": part("bert", depth=2, **text),
        "fusion": part(kind, depth=2, **text), "embed": 384, "pool": "mean", "image_start": "weights/vit-small",
        "text_start": "weights/bert-small", "fusion_start": "weights/bert-small", "dtype": "bfloat16",
    }  # fmt: skip
    return part("fused_towers", **given | fields)


def seed_run(c: ConfigDict, form: Thesis, **fields: Any) -> None:
    """Makes `c` the seed's run: its towers with a 'concat' fusion, Flickr30K alone, 15 epochs at a batch of 96.

    Source: spec B.2 and B.6.  Its views are whole images at 224 x 224, whatever their aspect, never mirrored.  What
    differs: there is no RandAugment; the rate falls until the last step, where theirs stays at 1e-5 for three epochs;
    'match' is one layer, where theirs has two.
    """
    c.batch_size, c.total_steps, c.checkpoint.every = 96, 15 * 1_511, 1_511
    c.optimizer.update(
        learning_rate=2.5e-4, final_rate=1e-5, warmup_fraction=0.2, weight_decay=0.01, decay_all=True,
        betas=(0.9, 0.999), eps=1e-8, clip_norm=1.0, reference_batch=0, lr_rules=(),
    )  # fmt: skip
    # No crop of the whole area fits, and then the largest box within `crop_ratio` is taken, which is the whole image.
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1 / 3, 3.0), "flip": 0.0}
    c.task = form.pairs(data=("data/flickr30k",), tokenizer="weights/bert-small/tokenizer", max_length=35, **whole)
    c.networks.towers = seed("concat", **fields)


def _flickr8k(kind, **fields):
    """Six layers of DINOv2 at 98 pixels, four of MiniLM, and its other two as the fusion.

    MiniLM was trained as the mean over its tokens, and its [CLS] was not.
    """
    text = {"width": 384, "num_heads": 12, "mlp_dim": 1536, "dropout": 0.1}
    given = {
        "image": part("vit", **Flickr8k.dinov2, image_size=98, depth=6), "text": part("bert", depth=4, **text),
        "fusion": part(kind, depth=2, **text), "image_start": "weights/dinov2", "text_start": "weights/minilm",
        "fusion_start": "weights/minilm", "pool": "mean",
    }  # fmt: skip
    return part("fused_towers", **given | fields)


def _scenes(kind, **fields):
    """A small tower that starts from the shipped teacher of drawn scenes."""
    layers = {**Scenes.tower, **Scenes.layers, "depth": 2}
    image = part("data2vec2", **Scenes.tower | Scenes.layers, image_size=32, patch_size=8, depth=3)
    given = {
        "image": image, "text": part("bert", **layers, max_positions=32), "fusion": part(kind, **layers), "embed": 64,
        "image_start": Scenes.start,
    }  # fmt: skip
    return part("fused_towers", **given | fields)


def _smoke(kind, **fields):
    image = {**Smoke.sizes, **Smoke.images_of, "width": 24}
    given = {"text": part("bert", **Smoke.sizes), "fusion": part(kind, **Smoke.sizes), "embed": 16, "dtype": "bfloat16"}
    fields = {key: value for key, value in fields.items() if "start" not in key}
    return part("fused_towers", image=part("vit", **image), **given | fields)


SIZES = {"": _published, "flickr8k": _flickr8k, "scenes": _scenes, "smoke": _smoke}
