"""S-SMKE without contrast: both modalities regress the teacher's [CLS], and nothing else brings them together.

    smke train --config=configs/no_itc.py --workdir=runs/no_itc --config.task.data=DATA

configs/s_smke_mse.py without its contrast.  Retrieval compares the heads, which are what the two modalities have in
common then.  The thesis' run was an earlier model: its text tower was Data2Vec2's, and it had no head, so that the
normalised output of the shared block was at once the prediction and what was compared.

Published, of that model: COCO 5k image to text 33.52 / 59.34 / 70.14, text to image 11.26 / 29.12 / 40.40; Flickr30K
8.86 / 29.88 / 41.98 and 4.45 / 18.42 / 26.82.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import regress
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=18, section="18", changed="MSE alone, no ITC", against="s_smke_mse",
        coco=(33.52, 59.34, 70.14, 11.26, 29.12, 40.40), flickr30k=(8.86, 29.88, 41.98, 4.45, 18.42, 26.82),
        published="an earlier text encoder and vocabulary",
    ),
)  # fmt: skip


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run()
    c.task = form.pairs()
    c.networks.teacher = form.teacher()
    c.networks.student = form.student(token_types=False)
    c.terms.regress = regress()
    c.evaluators.retrieval = form.retrieval(level="head")
    return c
