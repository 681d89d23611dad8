"""Locked-image tuning: frozen image towers whose features are stored, a text tower that is tuned, two projections.

    smke train --config=configs/lit.py --workdir=runs/lit --config.task.data=data/coco

The image towers embed random views of every photo once, or the whole photo and a close-up of it (flickr8k), and the
photos of the dev split.  Training reads these features and runs the text tower alone.  `smke_jax/convert/README.md`
says how to get the weights.
Source: Zhai et al. 2022, on features as in FuseMix (Vouitsis et al. 2024).

`configs/lit.py:frozen_text` keeps the text tower frozen too.  `:mixup` also contrasts mixed features.  `:structure`
adds STRUCTURE, whose weight rises from 0 to 10: rows that are neighbours in the first image tower, or in the text
tower, stay neighbours.  `:shared` puts S-SMKE's shared block after the projections.  `:one_tower` leaves out all image
towers but the first.  `:new_text` begins with a text tower of random weights, which has seen no captions;
`smke export` writes such a model as `flax` only.
"""

from smke_jax.forms import split_variant
from smke_jax.parts import itc, mixup, projections, stored_features, structure, transformer

VARIANTS = ("frozen_text", "mixup", "structure", "shared", "one_tower", "new_text")


def get_config(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS)
    c = form.tuning()
    c.task = form.captioned()
    if form.whole_photos:
        c.task.teacher_view = "fixed"
    towers = form.image_towers()
    if kind == "one_tower":
        towers = dict(list(towers.items())[:1])
    c.networks.update(towers)
    kept = {"trained": False} if kind == "frozen_text" else {"frozen_layers": form.frozen_words}
    c.networks.words = form.new_text_tower() if kind == "new_text" else form.text_tower(**kept)
    features = tuple(f"{name}/feature" for name in towers)
    shared = transformer(num_heads=8, mlp_dim=1024) if kind == "shared" else None
    c.networks.student = projections(image=features, dropout=form.feature_dropout, shared=shared)
    views = 0 if form.whole_photos else form.augmentations
    c.assets.photos = stored_features(of=features, augmentations=views, evaluated=(form.held_out,), half=True)
    c.terms.itc = itc(levels=("out",), same_image="positive")
    if kind == "mixup":
        c.selections.mixup = mixup()
        c.terms.mixed = itc(levels=("out",), pair=("mixed_image", "mixed_text"))
    if kind == "structure":
        c.terms.structure = structure(before=(features[0], "words/feature"), after=("image/out", "text/out"))
        c.terms.structure.weight, c.terms.structure.final_weight = 0.0, 10.0
    pretrained = () if kind == "new_text" else (("^words/", 0.2),)
    c.optimizer.lr_rules = (*pretrained, ("logit_scale", 10.0))
    c.evaluators.retrieval = form.retrieval()
    return c
