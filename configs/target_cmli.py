"""S-SMKE with Target-CMLI: patches regress the teacher's patches, and words the patch of the teacher nearest to them.

    smke train --config=configs/target_cmli.py --workdir=runs/target_cmli --config.task.data=DATA

The paper's setting: configs/s_smke_mse.py with token types, where the regression of [CLS] gives way to that of tokens;
words and patches are compared after one learned projection to 32 dimensions.  [CLS] learns from the contrast alone.
`configs/target_cmli.py:cosine` is the last state of the author's code, which has no reported run: [CLS] again, by its
cosine, and of every pair the one word and patch that are most alike.

Published: ImageNet zero-shot 26.7; mean of the six recalls on COCO 5k 65.68, on Flickr30K 76.2 (without it 30.3, 67.2,
78.29).
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import split_variant
from smke_jax.parts import itc, target_cmli, target_cmli_cosine
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=13.1, section="13", changed="every token learns its nearest patch of the teacher",
        against="token_types:after_scaled", coco=(65.68,), flickr30k=(76.2,), imagenet=26.7,
    ),
)  # fmt: skip

VARIANTS = ("cosine",)


def get_config(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS)
    c = form.run()
    c.task = form.pairs()
    c.networks.teacher = form.teacher()
    c.networks.student = form.student(image=form.patches)
    c.terms.itc = itc(levels=("fc1", "out"))
    if kind == "cosine":
        c.terms.target_cmli_cosine = target_cmli_cosine()
    else:
        c.terms.target_cmli = target_cmli(width=32)
    c.evaluators.retrieval = form.retrieval()
    return c
