"""The final model with other teachers, each a ViT-B/16: what it learns from whom.

    smke train --config=configs/teacher_ablation.py --workdir=runs/teacher_beitv2 --config.task.data=DATA
    smke train --config=configs/teacher_ablation.py:dino --workdir=runs/teacher_dino --config.task.data=DATA

    smke convert --checkpoint=beitv2_base_patch16_224_pt1k_ft1k.pth --out=weights/beitv2-base-ft1k
    smke convert --checkpoint=dino_vitbase16_pretrain.pth --out=weights/dino-base

The paper's setting is configs/s_smke.py, contrastive target loss with a bank of 65,536, and as its teacher

    beitv2      BEiT v2, self-supervised: configs/s_smke.py itself, the default
    beitv2_ft   BEiT v2 fine-tuned on ImageNet: KL divergence from its 1000 classes in place of the target loss
    data2vec2   Data2Vec2, which the image tower starts from too
    dino        DINO
    none        none: configs/itc_only.py

The forms smoke and flickr8k have one teacher for all, so beitv2, data2vec2 and dino are the same run there; beitv2_ft
has the stand-in for a classifier that configs/shre_mlp.py tells of.

Published (ImageNet zero-shot; mean recall on COCO 5k, image to text and text to image; on Flickr30K): beitv2 37.0;
74.72, 59.81; 86.33, 73.46.  beitv2_ft 34.6; 72.5, 61.16; 82.23, 72.07.  data2vec2 24.5; 66.72, 53.96; 74.83, 64.09.
dino 37.5; 71.88, 57.63; 82.07, 69.45.  none 25.8; 69.97, 58.05; 79.7, 68.57.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import split_variant
from smke_jax.parts import beit, data2vec2, itc, kl, target_itc, vit
from smke_jax.rungs import Rung

# On the photos data2vec2 and dino would be configs/s_smke.py once more, and none is configs/itc_only.py.
RUNGS = (
    Rung(
        order=22.1, section="22", changed="teacher: BEiT v2 fine-tuned on ImageNet, KL", variant="beitv2_ft",
        against="s_smke",
        coco=(50.16, 79.76, 87.6, 39.09, 66.35, 78.03), flickr30k=(63.9, 88.8, 94.0, 50.04, 79.44, 86.72),
        imagenet=34.6,
    ),
)  # fmt: skip

TEACHERS = {
    "beitv2": {"final_norm": False},
    "data2vec2": {"start": "weights/data2vec2-base", "model": data2vec2()},
    "dino": {"start": "weights/dino-base", "model": vit()},
}
VARIANTS = ("beitv2", "beitv2_ft", "data2vec2", "dino", "none")


def get_config(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS)
    kind = kind or "beitv2"
    c = form.run()
    c.task = form.pairs()
    if kind == "beitv2_ft":
        c.networks.teacher = form.classifier(
            start="weights/beitv2-base-ft1k",
            model=beit(final_norm=False, num_classes=1000, shared_bias=False),
            final_norm=False,
        )
    elif kind != "none":
        c.networks.teacher = form.teacher(**TEACHERS[kind])
    c.networks.student = form.student(head=form.classes if kind == "beitv2_ft" else form.width)
    c.terms.itc = itc(levels=("fc1", "out"))
    if kind == "beitv2_ft":
        c.terms.kl = kl()
    elif kind != "none":
        c.terms.target_itc = target_itc(bank_size=form.bank(65_536), random_bank=False)
    c.evaluators.retrieval = form.retrieval()
    return c
