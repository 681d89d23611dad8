"""Denoising pretraining without a moving average: hidden patches as gradients or pixels, hidden words, VICReg.

    smke train --config=configs/denoise.py --workdir=runs/denoise --config.task.data=data/flickr30k
    smke train --config=configs/denoise.py:hog,flickr8k --workdir=runs/denoise_hog
    smke train --config=configs/denoise.py:pixel,flickr8k --workdir=runs/denoise_pixel
    smke train --config=configs/finetune_fused.py:denoise,flickr8k --workdir=runs/denoise_tuned

The proposal of the seed (ViCVLM), in four losses that weigh the same.  Of an image with three quarters hidden and its
whole caption, the fused patches say what was hidden: `hog`, histograms of oriented gradients, which is also what no
variant says, `pixel`, or `pixel_norm`, pixels normalised per patch.  Of a caption with two fifths of its words hidden
and its whole image, the fused words say which they were.  Contrast and matching see the whole pair.  VICReg keeps image
and caption embeddings alike, and their channels varied and uncorrelated, before they are normalised; its own weights
are 25 : 25 : 1, so that at 0.04 its first two parts weigh as much as the other losses.  No second network is kept.

The sizes are the seed's: ViT-S/16 and BERT-small, whose last two layers are the fusion, Flickr30K, 15 epochs of 96.

What can be left out or changed:
- the share of hidden words: `--config.networks.towers.text_ratio=0.25`, 0.5, 0.6; of the images that are seen:
  `--config.task.data_fraction=0.25`, 0.5, which are nested
- VICReg: `--config.terms.vicreg.weight=0`; of the fused states of both masked views in place of the embeddings:
  `--config.terms.vicreg.pair=('masked_image/fused_cls','masked_text/fused_cls')`
- contrast: `--config.terms.itc.weight=0`, with
  `--config.selections.hard_negatives.hardness=14`, as then no scale is learned
- matching: `--config.terms.itm.weight=0`; words: `--config.terms.mlm.weight=0`; patches: `configs/denoise.py:words`.
  Nothing trains the head of a term that is left out, and what its evaluator then measures is chance: switch it off
  beside the term, with `--config.evaluators.rerank.split=` or `--config.evaluators.words.split=`
- noise in place of masks: `--config.networks.towers.hide_by=noise`, which adds Gaussian noise to the hidden pixels
  (`--config.networks.towers.noise=0.5`), and `--config.networks.towers.random_words=1.0`: any word in place of [MASK]
- the moving average's features as the target, and masked representations: configs/mamo.py

The seed's authors published no figures of this variant with gradients.  Theirs with pixels, fine-tuned on Flickr30K, of
its test split with the best 128 ordered anew: image to text 63.4 / 85.6 / 90.0, text to image 47.96 / 74.84 / 82.42.
"""

from smke_jax.forms import split_variant
from smke_jax.fused_forms import cell, fused, fused_run, reranked, seed_run
from smke_jax.parts import (
    draws,
    fused_itm,
    hard_negatives,
    itc,
    masked_words,
    mim,
    mlm,
    patch_predictor,
    reconstruction,
    vicreg,
)

WORDS = "words"
VARIANTS = ("hog", "pixel", "pixel_norm", WORDS)


def get_config(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS)
    target = kind or VARIANTS[0]
    hidden = {"mask_cell": cell(form), "text_ratio": 0.4, "text_unit": "word"}
    c = fused_run(form)
    c.task = form.captioned()
    if form.name:
        c.networks.towers = fused(form, "concat", **hidden)
    else:
        seed_run(c, form, **hidden)
    c.selections.draws = draws()
    c.selections.hard_negatives = hard_negatives(same_image="masked")
    c.terms.mlm = mlm()
    c.terms.itc = itc(levels=("out",), same_image="positive")
    c.terms.itm = fused_itm()
    c.terms.vicreg = vicreg(pair=("image/out", "text/out"), expander=(512, 512), weight=0.04)
    c.evaluators.retrieval = form.retrieval()
    c.evaluators.rerank = reranked(form)
    c.evaluators.words = masked_words(split=form.held_out)
    if target != WORDS:
        c.networks.patches = patch_predictor(of="masked_image/fused", target=target)
        c.terms.mim = mim()
        c.evaluators.reconstruction = reconstruction(target=target, split=form.held_out, every=c.checkpoint.every)
    return c
