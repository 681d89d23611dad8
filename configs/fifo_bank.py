"""A queue of the student's own past features as further negatives of ITC: the thesis' memory bank that failed.

    smke train --config=configs/fifo_bank.py --workdir=runs/fifo_bank --config.task.data=DATA

S-SMKE with MSE on the teacher's [CLS] and token types; ITC on two levels against the batch of 512 and four banks, one
for each modality and level.  Their size in the failed run is not known: 768 is the thesis' example, 512, 1024 and 4096
stand in earlier configs.  Slots that hold nothing yet are masked here; `--config.terms.bank_itc.random_bank=True`
starts with random vectors that count, as the thesis' code did.

Published, mean of the six recalls: COCO 5k 0.12, Flickr30K 0.58, ImageNet zero-shot 0.001, "not usable"; without the
bank 67.2, 78.29 and 30.3.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import bank_itc, regress
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=11, section="11", changed="a queue of the student's past features as negatives of ITC",
        against="token_types:after_scaled", coco=(0.12,), flickr30k=(0.58,), imagenet=0.001,
    ),
)  # fmt: skip


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run()
    c.task = form.pairs()
    c.networks.teacher = form.teacher()
    c.networks.student = form.student()
    c.terms.regress = regress()
    c.terms.bank_itc = bank_itc(levels=("fc1", "out"), bank_size=form.bank(768), random_bank=False)
    c.evaluators.retrieval = form.retrieval()
    return c
