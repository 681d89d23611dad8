"""S-SMKE that names the image's code in a codebook of the teacher's features, as SHRe names its class.

    smke train --config=configs/image_vq.py --workdir=runs/image_vq --config.task.data=IMAGES
    smke export --workdir=runs/image_vq --out=runs/image_vq/export
    smke train --config=configs/s_smke_vq.py --workdir=runs/s_smke_vq --config.task.data=DATA

The paper's setting: S-SMKE with token types, whose head has a logit for each of the 1024 codes; cross entropy for image
and text with the code that the frozen quantiser gives the image, beside ITC on two levels.  Whether the published run
used 16 channels or 8 is not known.

Published, mean of the six recalls: COCO 5k 61.2, Flickr30K 75.3, ImageNet zero-shot 25.1; with the [CLS] as target
67.2, 78.29 and 30.3.
Measured here: see configs/ladder.md.
"""

from pathlib import Path

from smke_jax.config_files import load_config
from smke_jax.forms import form_of
from smke_jax.parts import itc, target_code
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=17, section="17", changed="the teacher's quantised [CLS] as classes", against="token_types:after_scaled",
        coco=(61.2,), flickr30k=(75.3,), imagenet=25.1,
    ),
)  # fmt: skip


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run()
    c.task = form.pairs()
    c.networks.teacher = form.teacher()
    c.networks.quantizer = form.quantizer()
    c.networks.student = form.student(head=c.networks.quantizer.num_codes)
    c.terms.itc = itc(levels=("fc1", "out"))
    c.terms.target_code = target_code()
    c.evaluators.retrieval = form.retrieval()
    return c


def get_stages(variant: str = ""):
    """In small forms the codes are learned first, in the same directory."""
    stages, form = {"s_smke_vq": get_config(variant)}, form_of(variant).name
    if form not in ("flickr8k", "scenes"):
        return stages
    codes = load_config(f"{Path(__file__).with_name('image_vq.py')}:{form}")
    codes.total_steps = 260
    return {"codes": codes, **stages}
