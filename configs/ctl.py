"""Contrastive target loss: each modality finds the teacher's [CLS] of its own image among those of the batch.

    smke train --config=configs/ctl.py --workdir=runs/ctl --config.task.data=DATA

The paper's setting: configs/token_types.py with this loss in place of the mean squared error; 511 negatives over two
GPUs, from student to teacher only, at a temperature of 0.07 that the thesis' code meant to learn and never did
(`--config.terms.target_itc.learnable_scale=True` does).

Published: COCO 5k image to text 52.68 / 80.56 / 88.3, text to image 36.5 / 66.58 / 78.28; Flickr30K 69.0 / 89.2 / 94.3
and 51.48 / 79.18 / 86.66; ImageNet zero-shot 33.0.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import itc, target_itc
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=14, section="14", changed="contrast with the teacher's features for MSE",
        against="token_types:after_scaled",
        coco=(52.68, 80.56, 88.3, 36.5, 66.58, 78.28), flickr30k=(69.0, 89.2, 94.3, 51.48, 79.18, 86.66),
        imagenet=33.0,
    ),
)  # fmt: skip


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run()
    c.task = form.pairs()
    c.networks.teacher = form.teacher()
    c.networks.student = form.student()
    c.terms.itc = itc(levels=("fc1", "out"))
    c.terms.target_itc = target_itc(bank_size=0, learnable_scale=False)
    c.evaluators.retrieval = form.retrieval()
    return c
