"""Transformer SHRe with a shared Transformer block in place of the MLP: SHRe_T.

    smke train --config=configs/shre_transformer.py --workdir=runs/shre_transformer --config.task.data=DATA
    smke train --config=configs/shre_transformer.py:late --workdir=runs/shre_transformer_late --config.task.data=DATA

    smke convert --checkpoint=resnet50_a1_0-14fe96d1.pth --out=weights/resnet50-a1

The paper's setting: KL divergence from ResNet-50-A1's 1000 classes for both modalities, batch 512 over two GPUs.  The
thesis' accounts of its contrast differ:

    seed          two levels, first MLP layer and output of the block, their mean; the default
    seed_thirds   the same two, their sum over three: what the published run most likely did
    late          the output alone: the thesis' last text

The forms smoke and flickr8k (`:late,flickr8k`) have the stand-in for a classifier that configs/shre_mlp.py tells of.

Published: COCO 5k image to text 44.6 / 75.3 / 85.64, text to image 31.69 / 62.1 / 74.48; Flickr30K 58.8 / 85.6 / 92.4
and 43.92 / 74.06 / 82.8; ImageNet zero-shot 44.57; 5.27 h.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import split_variant
from smke_jax.parts import itc, kl
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=7, section="7", changed="Transformer block shared, ITC on two levels", variant="seed",
        against="shre_mlp",
        coco=(44.6, 75.3, 85.64, 31.69, 62.1, 74.48), flickr30k=(58.8, 85.6, 92.4, 43.92, 74.06, 82.8),
        imagenet=44.57,
    ),
    Rung(
        order=7.1, section="7", changed="ITC on the last level alone", variant="late",
        against="shre_transformer:seed",
    ),
)  # fmt: skip

VARIANTS = {
    "seed": {"levels": ("fc1", "out")},
    "seed_thirds": {"levels": ("fc1", "out"), "weight": 2 / 3},
    "late": {"levels": ("out",)},
}


def get_config(variant: str = ""):
    kind, form = split_variant(variant, tuple(VARIANTS))
    c = form.run()
    c.task = form.pairs()
    c.networks.teacher = form.classifier()
    c.networks.student = form.student(token_types=False, head=form.classes)
    c.terms.kl = kl()
    c.terms.itc = itc(**VARIANTS[kind or "seed"])
    c.evaluators.retrieval = form.retrieval()
    return c
