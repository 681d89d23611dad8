"""Retrieval fine-tuning: a trained student by contrast alone on the pairs that it will be tested on the like of.

    smke export --workdir=runs/s_smke --step=best --out=runs/s_smke/export
    smke train --config=configs/finetune_retrieval.py --workdir=runs/finetuned_coco --config.task.data=data/coco
    smke train --config=configs/finetune_retrieval.py:flickr30k --workdir=runs/finetuned_flickr30k

The paper's setting: from the final model, contrast on the output of the shared block alone, all parameters trained,
from the temperature that this level came to; batch 1024 on one GPU, a learning rate of 3e-5 whatever the batch, crops
of at least half the image, 5 epochs of COCO (2,770 steps) or, with `flickr30k`, of Flickr30K (710).  The thesis' config
says 20 epochs, and its code chose the worst checkpoint on the test split; here the best on dev is kept.

`--config.networks.student.start=DIR` starts from another export.  The forms flickr8k and scenes train configs/s_smke.py
first, as a stage in the same directory; the form smoke starts from random weights.

Published: COCO 5k image to text 56.2 / 83.3 / 91.1, text to image 39.8 / 69.2 / 79.8; Flickr30K 82.0 / 95.4 / 98.0 and
64.6 / 87.5 / 93.1.
Measured here: see configs/ladder.md.
"""

from pathlib import Path

from smke_jax.config_files import load_config
from smke_jax.forms import split_variant
from smke_jax.parts import itc
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=23, section="21", changed="fine-tuned for retrieval by ITC alone (published: on each data set)",
        against="s_smke",
        coco=(56.2, 83.3, 91.1, 39.8, 69.2, 79.8), flickr30k=(82.0, 95.4, 98.0, 64.6, 87.5, 93.1),
    ),
)  # fmt: skip

DATA = {"": ("data/coco", 554), "flickr30k": ("data/flickr30k", 142)}  # folder, steps of an epoch
VARIANTS = ("flickr30k",)
IN_STAGES = ("flickr8k", "scenes")  # forms


def get_config(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS)
    data, epoch = DATA[kind]
    c = form.run(batch_size=1024, total_steps=5 * epoch, epoch=epoch)
    c.task = form.pairs(data=(data,), crop_scale=(0.5, 1.0))
    start = "stage:s_smke" if form.name in IN_STAGES else "runs/s_smke/export"
    c.networks.student = form.student(start=start, image_start="random", text_start="random")
    c.terms.itc = itc(levels=("out",))
    c.optimizer.update(learning_rate=2e-4 if form.name in IN_STAGES else 3e-5, reference_batch=0)
    c.evaluators.retrieval = form.retrieval(every=epoch)
    return c


def get_stages(variant: str = ""):
    """In small forms configs/s_smke.py comes first, in the same directory."""
    stages, form = {"finetuned": get_config(variant)}, split_variant(variant, VARIANTS)[1].name
    if form not in IN_STAGES:
        return stages
    return {"s_smke": load_config(f"{Path(__file__).with_name('s_smke.py')}:{form}"), **stages}
