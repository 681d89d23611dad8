"""The student by contrast alone, without a teacher: what distillation has to be compared with.

    smke train --config=configs/itc_only.py --workdir=runs/itc_only --config.task.data=DATA

The paper's setting: configs/s_smke.py without its teacher; the head is there and nothing trains it.  It is the row
"none" of configs/teacher_ablation.py.

Published: COCO 5k image to text 47.48 / 76.46 / 85.98, text to image 34.20 / 64.02 / 75.94; Flickr30K 61.0 / 86.0 /
92.1 and 47.1 / 74.82 / 83.78; ImageNet zero-shot 25.8; 4.5 h.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import itc
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=22.4, section="22", changed="no teacher: ITC alone", against="s_smke",
        coco=(47.48, 76.46, 85.98, 34.20, 64.02, 75.94), flickr30k=(61.0, 86.0, 92.1, 47.1, 74.82, 83.78),
        imagenet=25.8,
    ),
)  # fmt: skip


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run()
    c.task = form.pairs()
    c.networks.student = form.student()
    c.terms.itc = itc(levels=("fc1", "out"))
    c.evaluators.retrieval = form.retrieval()
    return c
