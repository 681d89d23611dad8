"""S-SMKE on Flickr8k from scratch: 6,000 photos, no weights from elsewhere.

    smke prepare flickr8k --source=FLICKR8K --out=data/flickr8k --max_side=144
    smke train --config=configs/teacher_flickr8k.py --workdir=runs/teacher_flickr8k --config.task.data=data/flickr8k
    smke export --workdir=runs/teacher_flickr8k --out=runs/teacher_flickr8k/export
    smke train --config=configs/flickr8k.py --workdir=runs/flickr8k --config.task.data=data/flickr8k

`configs/flickr8k.py:itc` is the same student by ITC alone, from random weights; it needs no teacher.
"""

from smke_jax.forms import FORMS, split_variant
from smke_jax.parts import itc, target_itc

VARIANTS = ("itc",)


def get_config(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS)
    form = FORMS[form.name or "flickr8k"]
    c = form.run()
    c.task = form.pairs()
    c.terms.itc = itc(levels=("fc1", "out"))
    larger = {"image": {"image_size": 128}, "text": {"depth": 3}} if form.name == "flickr8k" else {}
    start = {"image_start": "random"} if kind == "itc" else {}
    c.networks.student = form.student(**larger, **start)
    if not kind:
        c.networks.teacher = form.teacher()
        c.terms.target_itc = target_itc(bank_size=form.bank(4096), weight=0.5)
    c.evaluators.retrieval = form.retrieval()
    if form.name == "flickr8k":
        c.total_steps = 1600
        c.evaluators.retrieval.every = c.checkpoint.every = 200
    return c
