"""S-SMKE as in the thesis: 117,167,618 parameters, BEiT v2 teacher, contrastive target loss, bank of 65,536.

    smke train --config=configs/s_smke.py --workdir=runs/s_smke --config.data.dir=DATA

It starts from pretrained parts, which these commands make of their authors' files:

    smke convert --checkpoint=beitv2_base_patch16_224_pt1k.pth --out=weights/beitv2-base-pt1k
    smke convert --checkpoint=base_imagenet.pt --out=weights/data2vec2-base
    smke convert --checkpoint=BERT_BASE_UNCASED_DIR --out=weights/bert-base-uncased

`configs/s_smke.py:random` starts everything from random weights, to try the code.  The thesis trained it in 11.2 h on
two RTX 4090 (3,264,868 pairs, 7 epochs): COCO 5k R@1 53.5 / 35.7, Flickr30K 70.9 / 52.7.  Run here so far, on two CPU
cores on 2026-11-22: `configs/s_smke.py:random` with BERT's vocabulary, batch 8 and fp32 takes two steps in 67 s,
compilation included, at a peak of 5.1 GB.
"""

from smke_jax.config import base, split_variant, variant_of
from smke_jax.reporting.rungs import Rung

RUNGS = (
    Rung(
        order=15, section="15", changed="a bank of the teacher's features as further negatives",
        coco=(53.54, 81.1, 89.52, 35.65, 66.0, 77.77), flickr30k=(70.9, 92.1, 96.0, 52.72, 80.2, 87.46), imagenet=37.0,
    ),
)  # fmt: skip


def get_config(variant: str = ""):
    kind, form = split_variant(variant, ("random",))
    c = base()
    c.batch_size = 512
    c.total_steps = 44_636
    c.terms.itc = {"levels": ("fc1", "out")}
    c.terms.target_itc = {"bank_size": 65_536}
    c.data.dir = "data/coco_cc"
    c.student.dtype = c.teacher.dtype = "bfloat16"
    c.student.image.init = "weights/data2vec2-base"
    c.student.text.init = "weights/bert-base-uncased"  # its vocabulary comes along
    c.teacher.checkpoint = "weights/beitv2-base-pt1k"
    c.teacher.final_norm = False  # as the thesis' memory bank run (spec 15)
    c.eval.every = c.checkpoint.every = 6_376  # an epoch
    if kind == "random":
        c.student.image.init = c.student.text.init = c.teacher.checkpoint = "random"
    return variant_of(c, form)
