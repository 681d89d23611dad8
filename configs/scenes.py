"""S-SMKE on procedurally drawn scenes, small enough for two CPU cores: what `smke demo` runs.

    smke train --config=configs/scenes.py --workdir=runs/scenes

`configs/scenes.py:itc` is the same student by ITC alone, from random weights, in the same time; `:itc_init` is that
with the image tower started from the teacher.
"""

from smke_jax.forms import FORMS, split_variant
from smke_jax.parts import itc, target_itc

VARIANTS = ("itc", "itc_init")


def get_config(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS)
    form = FORMS[form.name or "scenes"]
    c = form.run()
    c.task = form.pairs()
    start = {"image_start": "random"} if kind == "itc" else {}
    c.networks.student = form.student(token_types=False, **start)
    c.terms.itc = itc(levels=("fc1", "out"))
    if not kind:
        c.networks.teacher = form.teacher()
        c.terms.target_itc = target_itc(bank_size=form.bank(2048), weight=0.5, final_weight=0.0)
    elif form.name == "scenes":
        c.total_steps = 2400  # in the time of the default's 2150: without the teacher a step is faster
    c.evaluators.retrieval = form.retrieval()
    return c
