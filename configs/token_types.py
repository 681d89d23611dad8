"""Whether tokens are told their modality, and where: a learned vector for image and one for text, added to every token.

    smke train --config=configs/token_types.py --workdir=runs/token_types --config.task.data=DATA
    smke train --config=configs/token_types.py:before --workdir=runs/token_types_before --config.task.data=DATA

The paper's setting is configs/s_smke_mse.py with

    none           no such vectors: that config itself
    before         before the first block of each tower
    after          after the last block of each tower
    after_scaled   there too, times a learned LayerScale that starts at 1e-5: the default, kept in all later models

The thesis' code for `before` built the stem of the image tower again and lost its first LayerNorm on the way, which may
be what cost it quality.  Here the vector is added to patches and [CLS] before that LayerNorm, and to the words after
the LayerNorm of BERT's embeddings; everything else stays.

Published (ImageNet zero-shot; mean of the six recalls on COCO 5k; on Flickr30K): none 30.4, 66.87, 77.1; before 29.6,
66.0, 76.5; after 30.3, 67.2, 78.08; after_scaled 30.3, 67.2, 78.29.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import split_variant
from smke_jax.parts import itc, regress
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=9.1, section="9a", changed="token types added before the encoders", variant="before",
        against="s_smke_mse", coco=(66.0,), flickr30k=(76.5,), imagenet=29.6,
    ),
    Rung(
        order=9.2, section="9b", changed="token types added after the encoders", variant="after",
        against="s_smke_mse", coco=(67.2,), flickr30k=(78.08,), imagenet=30.3,
    ),
    Rung(
        order=9.3, section="9c", changed="token types added after the encoders, with a learned scale",
        variant="after_scaled", against="s_smke_mse", coco=(67.2,), flickr30k=(78.29,), imagenet=30.3,
    ),
)  # fmt: skip

VARIANTS = {
    "none": {"token_types": False},
    "before": {"token_types_at": "before", "token_type_scale": None},
    "after": {"token_type_scale": None},
    "after_scaled": {},
}


def get_config(variant: str = ""):
    kind, form = split_variant(variant, tuple(VARIANTS))
    c = form.run()
    c.task = form.pairs()
    c.networks.teacher = form.teacher()
    c.networks.student = form.student(**VARIANTS[kind or "after_scaled"])
    c.terms.regress = regress()
    c.terms.itc = itc(levels=("fc1", "out"))
    c.evaluators.retrieval = form.retrieval()
    return c
