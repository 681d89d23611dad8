"""The first S-SMKE: a self-supervised teacher, BEiT v2, whose [CLS] both modalities regress.

    smke train --config=configs/s_smke_mse.py --workdir=runs/s_smke_mse --config.task.data=DATA

The paper's setting: configs/shre_transformer.py with BEiT v2's normalised [CLS] as target, a head of 768 in place of
1000, and the mean squared error in place of the KL divergence; batch 512 over two GPUs, 7 epochs.

Published: COCO 5k image to text 51.66 / 79.9 / 88.66, text to image 36.17 / 66.55 / 78.28; Flickr30K 64.5 / 88.4 / 93.0
and 51.78 / 78.54 / 86.46; ImageNet zero-shot 30.4; 6.9 h.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import itc, regress
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=8, section="8", changed="self-supervised BEiT v2 as teacher, MSE on its [CLS]",
        against="shre_transformer:seed",
        coco=(51.66, 79.9, 88.66, 36.17, 66.55, 78.28), flickr30k=(64.5, 88.4, 93.0, 51.78, 78.54, 86.46),
        imagenet=30.4,
    ),
)  # fmt: skip


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run()
    c.task = form.pairs()
    c.networks.teacher = form.teacher()
    c.networks.student = form.student(token_types=False)
    c.terms.regress = regress()
    c.terms.itc = itc(levels=("fc1", "out"))
    c.evaluators.retrieval = form.retrieval()
    return c
