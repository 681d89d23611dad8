"""S-SMKE with image-text matching: a head says whether a caption belongs to an image, from the sum of their features.

    smke train --config=configs/itm.py --workdir=runs/itm --config.task.data=DATA

The paper's setting: configs/s_smke_mse.py with token types, and matching as a third loss of the same weight, at both
levels of its contrast.  B pairs belong together and 2B do not; the wrong ones are drawn by the contrast's softmax, at
its learned temperature.  `--config.selections.hard_negatives.hardness=0` draws uniformly: the thesis' other run.  Both
runs stood at an accuracy of 66.67 % for an epoch and were stopped.  They had to stay there: a sum of features under a
linear head knows nothing of the pair (smke_jax/objectives/itm.py).  `--config.terms.itm.fusion=gelu` puts a
non-linearity between.

Published: accuracy 66.67 %, no recalls.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import hard_negatives, itc, itm, regress
from smke_jax.rungs import Rung

RUNGS = (
    Rung(order=10, section="10", changed="image-text matching by feature fusion", against="token_types:after_scaled"),
)  # fmt: skip


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run()
    c.task = form.pairs()
    c.networks.teacher = form.teacher()
    c.networks.student = form.student()
    c.selections.hard_negatives = hard_negatives(level="out")
    c.terms.regress = regress()
    c.terms.itc = itc(levels=("fc1", "out"))
    c.terms.itm = itm(levels=("fc1", "out"), fusion="additive", width=768)
    c.evaluators.retrieval = form.retrieval()
    return c
