"""Batch size × devices at an equal number of examples: the S-SMKE student of configs/scenes.py on drawn scenes.

    smke sweep --config=configs/scaling.py --out=runs/scaling

trains it for every combination of `get_sweep` and compares them; combinations that need more devices than there are
get skipped.  One of them alone:

    smke train --config=configs/scaling.py --workdir=runs/scaling_512 --config.batch_size=512

`configs/scaling.py:flickr8k` is the form on photos and needs what the head of configs/flickr8k.py names.  The learning
rate stands for a batch of 256 and grows in proportion to the batch, as in every config; whether that suits a batch,
`--axis config.optimizer.learning_rate=…` finds out.
"""

from smke_jax.forms import FORMS, form_of
from smke_jax.parts import itc, target_itc

EXAMPLES = 2**18  # that each run sees: 13 epochs of the scenes, 44 of Flickr8k's training photos


def get_config(variant: str = ""):
    form = FORMS[form_of(variant).name or "scenes"]
    c = form.run()
    c.log.every = 16
    c.task = form.pairs()
    c.networks.teacher = form.teacher()
    c.networks.student = form.student(token_types=False)
    c.terms.itc = itc(levels=("fc1", "out"))
    # A bank no smaller than the largest batch.
    c.terms.target_itc = target_itc(bank_size=40 if form.name == "smoke" else 4096, weight=0.5, final_weight=0.0)
    c.evaluators.retrieval = form.retrieval()
    examples = 32 if form.name == "smoke" else EXAMPLES
    c.total_steps = examples // c.get_ref("batch_size")  # follows --config.batch_size
    return c


def get_sweep(variant: str = ""):
    if variant == "smoke":
        return {"config.batch_size": (8, 16), "config.num_devices": (1, 2)}
    return {"config.batch_size": (128, 256, 512, 1024, 2048), "config.num_devices": (1, 2, 4, 8)}
