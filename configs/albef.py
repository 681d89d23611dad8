"""ALBEF: contrast and matching of images and captions, and masked words, with a momentum encoder as teacher of both.

    smke train --config=configs/albef.py --workdir=runs/albef --config.task.data=DATA
    smke train --config=configs/albef.py:flickr8k --workdir=runs/albef_flickr8k

Li et al. 2021, "Align before Fuse".  A ViT-B/16 at 256 pixels, the first six layers of BERT-base, and its last six as
a fusion encoder whose words attend to the image too.  Contrast is on [CLS], over the batch and queues of 65,536 past
features of the momentum encoder; its soft targets have the weight 0.4, as they have in the loss of masked words (15 %).
Matching sees every pair, and one wrong caption and one wrong image for each, drawn from the batch by contrast's own
softmax and never of the same image.

Without a form the optimizer and the data's views are the published ones (spec B.3): 30 epochs at a batch of 512, 1e-4
down to 1e-5 by a cosine, 25 tokens of a caption, crops of a fifth of the image or more.

What differs from the published code:
- other captions of the same image are right in the contrast too, as in its fine-tuning
- exactly 15 % of the tokens are masked, one at least, and [SEP] never
- the head of masked words begins at random, but for the table of words: BERT's own head is not read
- an empty place of a queue is no candidate; the scale is at most 100, not 1000
- there is no RandAugment; captions keep their punctuation; the 2,000 steps of warm-up begin at 0, not at 1e-5
- the pairs are those of the thesis, COCO and Conceptual Captions, 3.3 million
The weight of the soft targets rises in `ramp_steps`: an epoch, as published, and 40 steps in small forms.

`--config.terms.itc.share=0` and `--config.terms.mlm.share=0` learn without the momentum encoder's targets.
The forms flickr8k and scenes are for two CPU cores; the README says how to get `weights/dinov2` and `weights/minilm`.
"""

from smke_jax.forms import form_of
from smke_jax.fused_forms import fused, fused_run, published, reranked
from smke_jax.parts import average, draws, fused_itm, hard_negatives, masked_words, mlm, momentum_itc

EPOCH = 6_376  # steps


def get_config(variant: str = ""):
    form = form_of(variant)
    c = fused_run(form)
    c.task = form.captioned()
    if not form.name:
        c.total_steps = 30 * EPOCH
        published(c, learning_rate=1e-4, final_rate=1e-5, warmup_fraction=2_000 / c.total_steps)
        c.task.update(max_length=25, crop_scale=(0.2, 1.0))
    ramp = EPOCH if not form.name else 40
    c.networks.towers = fused(form, "cross", random_words=0.1, kept_words=0.1)
    c.networks.momentum = average(of="towers", decay=0.995)
    c.selections.draws = draws()
    c.selections.hard_negatives = hard_negatives(same_image="masked")
    c.terms.itc = momentum_itc(bank_size=form.bank(65_536), share=0.4, ramp_steps=ramp)
    c.terms.itm = fused_itm()
    c.terms.mlm = mlm(teacher="momentum/", share=0.4, ramp_steps=ramp)
    c.evaluators.retrieval = form.retrieval()
    c.evaluators.rerank = reranked(form)
    c.evaluators.words = masked_words(split=form.held_out)
    return c
