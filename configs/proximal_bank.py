"""A bank with a row for every image of the data set, kept comparable by proximal regularisation (Wu et al. 2018).

    smke train --config=configs/proximal_bank.py --workdir=runs/proximal_bank --config.task.data=DATA

    smke plan --config=configs/proximal_bank.py --devices=8 --device=h200 --images=2811408     # whether it fits

S-SMKE with MSE on the teacher's [CLS] and token types.  ITC on the last level compares with the batch of 512 and with
every other image of the data set as it was when it was seen last; 30 times the squared distance that a feature has
moved since then is added.  Of 2,811,408 images two banks of 768 channels are 17.3 GB in fp32, split over the devices.
The image's text there is the caption of it that was seen last, so the regularisation also draws captions of one image
to each other.

Published: nothing; the thesis (3.2.4.3.1) discusses it and had no memory for it.  Its S-SMKE without a bank, mean of
the six recalls: COCO 5k 67.2, Flickr30K 78.29, ImageNet zero-shot 30.3.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import proximal_itc, regress
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=11.5, section="Wu et al. 2018; thesis 3.2.4.3.1",
        changed="a bank of the whole dataset with proximal regularisation", against="token_types:after_scaled",
    ),
)  # fmt: skip


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run()
    c.task = form.pairs()
    c.networks.teacher = form.teacher()
    c.networks.student = form.student()
    c.terms.regress = regress()
    c.terms.proximal_itc = proximal_itc(level="out", proximal=30.0)
    c.evaluators.retrieval = form.retrieval()
    return c
