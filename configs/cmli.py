"""S-SMKE with cross-modal late interaction: patches and words are contrasted besides [CLS] (FILIP).

    smke train --config=configs/cmli.py --workdir=runs/cmli --config.task.data=DATA

The paper's setting: configs/s_smke_mse.py with token types, and the token-wise contrast of FILIP over the global batch
as a third loss of the same weight.  The thesis gave it up for its memory: the cosines of all tokens of 512 images with
those of 512 captions.  Here a block of them exists at a time, so that it fits; what stays is their computation, by far
the most expensive part of a step (`smke plan --config=configs/cmli.py`).  `--config.terms.cmli.width=32` compares the
tokens after a projection to so many dimensions, at 1/24 of it.

Published: nothing, it was never trained.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import cmli, itc, regress, word_patches
from smke_jax.rungs import Rung

RUNGS = (
    Rung(order=13, section="13", changed="token-wise contrast (FILIP) besides ITC", against="token_types:after_scaled"),
)  # fmt: skip


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run()
    c.task = form.pairs()
    c.networks.teacher = form.teacher()
    c.networks.student = form.student()
    c.terms.regress = regress()
    c.terms.itc = itc(levels=("fc1", "out"))
    c.terms.cmli = cmli(width=0)
    c.evaluators.retrieval = form.retrieval()
    c.evaluators.words = word_patches(split=form.held_out)
    return c
