"""S-SMKE as in the thesis: 117,167,618 parameters, BEiT v2 teacher, contrastive target loss, bank of 65,536.

    smke train --config=configs/s_smke.py --workdir=runs/s_smke --config.task.data=DATA

It starts from pretrained parts, which these commands make of their authors' files:

    smke convert --checkpoint=beitv2_base_patch16_224_pt1k.pth --out=weights/beitv2-base-pt1k
    smke convert --checkpoint=base_imagenet.pt --out=weights/data2vec2-base
    smke convert --checkpoint=BERT_BASE_UNCASED_DIR --out=weights/bert-base-uncased

`configs/s_smke.py:random` starts everything from random weights, to try the code.

The paper's setting: batch 512 over two RTX 4090, 7 epochs of 3,264,868 pairs of COCO, CC3M and CC12M in 11.2 h.

Published: COCO 5k image to text 53.54 / 81.1 / 89.52, text to image 35.65 / 66.0 / 77.77; Flickr30K 70.9 / 92.1 / 96.0
and 52.72 / 80.2 / 87.46; ImageNet zero-shot 37.0.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import split_variant
from smke_jax.parts import beit, itc, target_itc
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=15, section="15", changed="a bank of the teacher's features as further negatives", against="ctl",
        coco=(53.54, 81.1, 89.52, 35.65, 66.0, 77.77), flickr30k=(70.9, 92.1, 96.0, 52.72, 80.2, 87.46), imagenet=37.0,
    ),
)  # fmt: skip
VARIANTS = ("random",)


def get_config(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS)
    c = form.run()
    c.task = form.pairs()
    c.networks.teacher = form.teacher(final_norm=False)  # as the thesis' memory bank run (spec 15)
    c.networks.student = form.student()
    c.terms.itc = itc(levels=("fc1", "out"))
    c.terms.target_itc = target_itc(bank_size=form.bank(65_536), random_bank=False)
    c.evaluators.retrieval = form.retrieval()
    if kind == "random":
        c.task = form.pairs(tokenizer="")
        c.networks.teacher = form.teacher(final_norm=False, start="random", model=beit())
        c.networks.student = form.student(image_start="random", text_start="random")
    return c
