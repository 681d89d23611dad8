"""MAMO: masked images, masked words and masked representations of both, beside contrast and matching.

    smke train --config=configs/mamo.py --workdir=runs/mamo --config.task.data=DATA
    smke train --config=configs/mamo.py:seed --workdir=runs/mamo_seed
    smke train --config=configs/mamo.py:flickr8k --workdir=runs/mamo_flickr8k

Zhao et al. 2023, "MAMO: Masked Multimodal Modeling for Fine-Grained Vision-Language Representation Learning".  A pair
is seen whole, with three quarters of the image hidden, and with a quarter of the words hidden.  Fused tokens of the
masked pairs learn what a moving average of the network (0.995) makes of the whole pair at the hidden places, the hidden
patches what its image tower makes of them, and the hidden words which words they were.  All five losses weigh the same.

The sizes are ALBEF's, with a fusion of the 'concat' kind, in which patches are fused too: what the paper says of them
could not be read.  `:seed` has those of the seed's authors: ViT-S/16 and BERT-small, whose last two layers are the
fusion, Flickr30K alone, 15 epochs at a batch of 96; it has no small form.
`seed_run` in smke_jax/fused_forms.py says what differs from it.
Their code's masked representations collapsed to a loss of 2e-7.  Here the predictor is on the online side alone and the
target is standardised, and the metrics `mrm/embedding_std/...` and `mim/embedding_std/...` say when either collapses;
the loop warns of that.

`:no_ema` leaves out the moving average and the two losses of what it makes.  configs/finetune_fused.py fine-tunes what
this one trains.  `--config.networks.towers.text_ratio=0.5` hides more words,
`--config.networks.towers.text_unit=token` single pieces of them, and `--config.terms.mrm.weight=0` leaves a loss out.
Without contrast (`--config.terms.itc.weight=0`) no scale is learned, and
`--config.selections.hard_negatives.hardness=14` says how hard wrong pairs are.
"""

from smke_jax.forms import split_variant
from smke_jax.fused_forms import cell, fused, fused_run, reranked, seed_run
from smke_jax.parts import average, draws, fused_itm, hard_negatives, itc, masked_words, mim, mlm, mrm, patch_predictor

VARIANTS = ("seed", "no_ema")
ONE_SIZE = ("seed",)
EPOCHS = 30


def get_config(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS, alone=ONE_SIZE)
    hidden = {"mask_cell": cell(form), "hide_by": "zero", "text_ratio": 0.25, "text_unit": "word"}
    c = fused_run(form)
    c.task = form.captioned()
    if kind == "seed":
        seed_run(c, form, **hidden)
    else:
        c.networks.towers = fused(form, "concat", **hidden)
        if not form.name:
            c.total_steps = EPOCHS * c.checkpoint.every
            c.optimizer.update(learning_rate=1e-4, weight_decay=0.02, reference_batch=0, lr_rules=())
    c.selections.draws = draws()
    c.selections.hard_negatives = hard_negatives(same_image="masked")
    c.terms.itc = itc(levels=("out",), same_image="positive")
    c.terms.itm = fused_itm()
    c.terms.mlm = mlm()
    if kind != "no_ema":
        width = c.networks.towers.fusion.width
        c.networks.momentum = average(of="towers", decay=0.995)
        c.networks.patches = patch_predictor(of="masked_image/fused", target="ema", average="momentum", hidden=(width,))
        c.terms.mrm = mrm(target="momentum/")
        c.terms.mim = mim(watched=True)
    c.evaluators.retrieval = form.retrieval()
    c.evaluators.rerank = reranked(form)
    c.evaluators.words = masked_words(split=form.held_out)
    return c
