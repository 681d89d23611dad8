"""Transformer SHRe with the ranking loss of the original SHRe (Aytar et al. 2017) in place of contrast.

    smke train --config=configs/shre_ranking.py --workdir=runs/shre_ranking --config.task.data=DATA

    smke convert --checkpoint=resnet50_a1_0-14fe96d1.pth --out=weights/resnet50-a1

The student, teacher and schedule of configs/shre_mlp.py.  Over all pairs of the batch, an image has to be nearer to its
own text than to another's by a margin, on each of the three shared layers.  The thesis gives no margin: 0.2 is common.
`--config.terms.ranking.symmetric=True` has the texts rank the images too.

The forms smoke and flickr8k have the stand-in for a classifier that configs/shre_mlp.py tells of.

Published, of the original SHRe (convolutional, batch 200): median rank on COCO 5.8 / 6.0; none for this form.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import kl, ranking
from smke_jax.rungs import Rung

RUNGS = (
    Rung(order=6, section="20", changed="the original SHRe's ranking loss for ITC", against="shre_mlp"),
)  # fmt: skip


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run(batch_size=256, total_steps=89_273, epoch=12_753)
    c.task = form.pairs()
    c.networks.teacher = form.classifier()
    c.networks.student = form.student(token_types=False, shared=form.mlp(), head=form.classes)
    c.terms.kl = kl()
    c.terms.ranking = ranking(levels=("fc1", "out", "head"), margin=0.2, symmetric=False)
    c.evaluators.retrieval = form.retrieval(every=12_753)
    return c
