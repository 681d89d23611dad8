"""S-SMKE on Flickr8k from scratch: 6,000 photos, no weights from elsewhere.

    smke prepare flickr8k --source=FLICKR8K --out=data/flickr8k --max_side=144
    smke train --config=configs/teacher_flickr8k.py --workdir=runs/teacher_flickr8k --config.data.dir=data/flickr8k
    smke export --workdir=runs/teacher_flickr8k --out=runs/teacher_flickr8k/export
    smke train --config=configs/flickr8k.py --workdir=runs/flickr8k --config.data.dir=data/flickr8k

`configs/flickr8k.py:itc` is the same student by ITC alone, from random weights; it needs no teacher.
"""

from smke_jax.config import FLICKR8K_TEACHER, base, flickr8k, split_variant, variant_of


def get_config(variant: str = ""):
    kind, form = split_variant(variant, ("itc",))
    c = flickr8k(base())
    c.total_steps = 1600
    c.student.image.image_size = 128
    c.student.text.depth = 3
    c.terms.itc = {"levels": ("fc1", "out")}
    if kind == "itc":
        c.passes = ("student",)
        c.teacher.checkpoint, c.student.image.init = "", "random"
    else:
        c.teacher.checkpoint = FLICKR8K_TEACHER
        c.terms.target_itc = {"bank_size": 4096, "weight": 0.5}
    c.eval.every = c.checkpoint.every = 200
    return variant_of(c, form)
