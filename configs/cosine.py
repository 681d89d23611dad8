"""S-SMKE with a cosine embedding loss in place of contrast: one other text per image instead of a batch of them.

    smke train --config=configs/cosine.py --workdir=runs/cosine --config.task.data=DATA

configs/s_smke_mse.py with half of (1 - cosine) of every pair and half of max(0, cosine - margin) of every image with
the text of another, drawn evenly over the global batch in every step, in place of its contrast.  The thesis gives no
margin; 0.5 is that of the nearest code.  `--config.terms.cosine.negatives=False` leaves the others out: then the loss
is least where all images and texts have the same embedding, and what runs log as `embedding_std` would show it.

Published, of an earlier model whose text tower was Data2Vec2's: COCO 5k image to text 35.48 / 60.74 / 71.44, text to
image 12.46 / 31.74 / 43.71; Flickr30K 9.44 / 31.18 / 43.50 and 4.8 / 20.98 / 30.08.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import cosine, regress
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=19, section="19", changed="a cosine embedding loss beside the MSE, in place of ITC", against="no_itc",
        coco=(35.48, 60.74, 71.44, 12.46, 31.74, 43.71), flickr30k=(9.44, 31.18, 43.50, 4.8, 20.98, 30.08),
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
    c.terms.cosine = cosine(levels=("out",), margin=0.5, negatives=True)
    c.evaluators.retrieval = form.retrieval()
    return c
