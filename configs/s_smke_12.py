"""S-SMKE scaled up: towers of 12 layers, two shared layers, contrast on the last of them; 209,310,721 parameters.

    smke train --config=configs/s_smke_12.py --workdir=runs/s_smke_12 --config.task.data=DATA

The paper's plan, whose text ends before its results: all 12 layers of Data2Vec2 and of BERT, contrastive target loss
with a bank of 65,536, batch 1024 over two GPUs, 15 epochs, and a lower learning rate for the pretrained towers, after
METER: here a tenth, 1e-5 against 1e-4, as the thesis' code once had it.

In the form flickr8k the text tower starts from random weights, so the image tower alone learns at a tenth.

Published: nothing.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import itc, target_itc
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=24, section="22", changed="12 + 12 layers, two shared ones, ITC on the last, slower towers",
        against="s_smke",
    ),
)  # fmt: skip


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run(batch_size=1024, total_steps=15 * 3_188, epoch=3_188)
    c.task = form.pairs()
    c.networks.teacher = form.teacher(final_norm=False)
    text = {"depth": 4} if form.name == "flickr8k" else {}
    c.networks.student = form.student(depth=12, text=text, shared=form.transformer(depth=2))
    c.terms.itc = itc(levels=("out",))
    c.terms.target_itc = target_itc(bank_size=form.bank(65_536), random_bank=False)
    towers = "image" if form.name == "flickr8k" else "(image|text)"
    c.optimizer.lr_rules = ((f"^student/{towers}_encoder/", 0.1),)
    c.evaluators.retrieval = form.retrieval(every=3_188)
    return c
