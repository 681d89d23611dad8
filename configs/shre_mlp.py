"""Transformer SHRe with a shared MLP: a supervised ResNet-50 as teacher, and contrast on all three layers of the MLP.

    smke train --config=configs/shre_mlp.py --workdir=runs/shre_mlp --config.task.data=DATA

    smke convert --checkpoint=resnet50_a1_0-14fe96d1.pth --out=weights/resnet50-a1

The paper's setting: towers of 6 layers, KL divergence from ResNet-50-A1's 1000 classes for both modalities, and the
mean of the image-text contrast on the three layers; batch 256 on one GPU, 7 epochs.  Retrieval compares the second
layer, as the thesis' code does; `--config.evaluators.retrieval.level=head` compares the third, as its text says.

With the contrast over two GPUs (511 negatives) it is the same config on more devices:
`--config.batch_size=512 --config.total_steps=44636 --config.evaluators.retrieval.every=6376
--config.checkpoint.every=6376`.

The forms smoke and flickr8k have no ImageNet classifier.  There the head of the teacher is a stand-in: the cosines of
its [CLS] with 256 fixed random directions, at a temperature of 0.1.  Their softmax is learned in place of class
probabilities, and no class means anything.

Published: COCO 5k image to text 37.06 / 67.74 / 79.7, text to image 25.3 / 54.73 / 68.19; Flickr30K 49.9 / 78.5 / 88.5
and 37.04 / 67.34 / 77.38; ImageNet zero-shot 40.26.  Over two GPUs: COCO 41.88 / 71.86 / 83.06 and 29.4 / 59.3 / 72.06;
Flickr30K 56.1 / 83.5 / 90.7 and 41.80 / 71.36 / 81.14; ImageNet 40.0.
Measured here: see configs/ladder.md.
"""

from smke_jax.forms import form_of
from smke_jax.parts import itc, kl
from smke_jax.rungs import Rung

RUNGS = (
    Rung(
        order=5, section="5, 6",
        changed="3-layer MLP shared, KL on a classifier's logits, ITC on three layers (published at a batch of 512)",
        coco=(41.88, 71.86, 83.06, 29.4, 59.3, 72.06), flickr30k=(56.1, 83.5, 90.7, 41.80, 71.36, 81.14),
        imagenet=40.0,
    ),
)  # fmt: skip


def get_config(variant: str = ""):
    form = form_of(variant)
    c = form.run(batch_size=256, total_steps=89_273, epoch=12_753)
    c.task = form.pairs()
    c.networks.teacher = form.classifier()
    c.networks.student = form.student(token_types=False, shared=form.mlp(), head=form.classes)
    c.terms.kl = kl()
    c.terms.itc = itc(levels=("fc1", "out", "head"))
    c.evaluators.retrieval = form.retrieval(every=12_753)
    return c
