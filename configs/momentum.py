"""ITC against a momentum encoder: a queue of features of the student's moving average as negatives.

    smke train --config=configs/momentum.py --workdir=runs/momentum --config.task.data=DATA

S-SMKE with MSE on the teacher's [CLS] and token types.  In every step the average (0.995) is updated first and runs on
the batch; the student's features then find the average's feature of the other modality among those of the batch and of
a bank of 65,536 for each modality.  ITC is on the last level only, which halves the banks.  In the thesis' code each of
the two GPUs compared with its own half of the batch; here all do with the whole of it.

Published, mean of the six recalls: COCO 5k 64.28, Flickr30K 76.17, ImageNet zero-shot 30.0, in 10.3 h; without bank and
momentum encoder, on two levels, 67.2, 78.29 and 30.3 in 7 h.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import average, bank_itc, regress
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=12, section="12", changed="a momentum encoder fills the bank", against="token_types:after_scaled",
        coco=(64.28,), flickr30k=(76.17,), imagenet=30.0,
    ),
)  # fmt: skip


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run()
    c.task = form.pairs()
    c.networks.momentum = average(of="student", decay=0.995)
    c.networks.teacher = form.teacher()
    c.networks.student = form.student()
    c.terms.regress = regress()
    c.terms.bank_itc = bank_itc(levels=("out",), keys="momentum/", bank_size=form.bank(65_536))
    c.evaluators.retrieval = form.retrieval()
    return c
