"""An image teacher of one's own by masking alone, from photos without captions: hidden patches are predicted.

    smke train --config=configs/mim_image.py --workdir=runs/mim_image --config.task.data=DATA
    smke train --config=configs/mim_image.py:hog,flickr8k --workdir=runs/mim_flickr8k --config.task.data=data/flickr8k
    smke train --config=configs/mim_image.py:hog,scenes --workdir=runs/mim_scenes
    smke export --workdir=runs/mim_flickr8k --out=runs/mim_flickr8k/export

What is predicted of a hidden patch, from what the encoder makes of the visible ones:
- `hog`, histograms of oriented gradients (MaskFeat, Wei et al. 2022), which is also what no variant says;
- `pixel`, the pixels (SimMIM, Xie et al. 2022), or `pixel_norm`, each patch normalised (MAE, He et al. 2022);
- `ema`, the patch in a moving average of the encoder, which sees the whole photo;
- `noise`, the pixels under Gaussian noise, in place of a mask token.

SimMIM's setting: a ViT-B/16 from random weights, blocks of 32 pixels, 60 % of them hidden, 800 epochs of ImageNet at a
batch of 2,048, peak learning rate 1e-4 for 512 images.  Its schedule is constant with one step down, and it has
relative positions and stochastic depth; here the rate falls along a cosine.  MaskFeat hides 40 %.
Other shares: `--config.networks.tower.mask_ratio=0.4`.

`flickr8k` and `scenes` have the encoders of configs/teacher_flickr8k.py and configs/teacher_scenes.py, which learn
from two views: the export of one can start what that of the other starts.  Masking does not train [CLS].  The feature
of such an encoder is the mean over patches, 'image/mean' here, and pools=("mean",) of the network `frozen`.

The evaluator `reconstruction` measures hidden patches of photos that are not trained on; the report shows some of them.
"""

from smke_jax.forms import split_variant
from smke_jax.parts import (
    average,
    data2vec2,
    draws,
    masked_image_tower,
    mim,
    patch_predictor,
    reconstruction,
    scene_probe,
    vit,
)

VARIANTS = ("hog", "pixel", "pixel_norm", "ema", "noise")
EPOCH = 625  # steps of 2,048
LAYERS = {"norm_order": "pre", "init_std": 0.0}
# {form: (encoder, pixels per side of a block)}
ENCODERS = {
    "": (vit(), 32),
    "flickr8k": (
        data2vec2(image_size=128, width=192, depth=4, num_heads=3, mlp_dim=384, activation="gelu_tanh", **LAYERS), 32,
    ),
    "scenes": (
        data2vec2(
            image_size=32, patch_size=8, width=64, depth=3, num_heads=2, mlp_dim=128, activation="relu", **LAYERS
        ), 8,
    ),
    "smoke": (data2vec2(image_size=32, patch_size=16, width=32, depth=1, num_heads=2, mlp_dim=48), 16),
}  # fmt: skip


def get_config(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS)
    noisy, target = kind == "noise", {"": "hog", "noise": "pixel"}.get(kind, kind)
    model, cell = ENCODERS[form.name]
    c = form.run(batch_size=2_048, total_steps=800 * EPOCH, epoch=EPOCH)
    if form.name == "":
        c.optimizer.update(
            learning_rate=1e-4, reference_batch=512, warmup_fraction=10 / 800, weight_decay=0.05, betas=(0.9, 0.999),
            eps=1e-8,
        )  # fmt: skip
        c.checkpoint.every = 10 * EPOCH
    else:
        c.optimizer.update(name="muon", learning_rate=2e-3, weight_decay=0.05, clip_norm=1.0)
    c.task = form.images()
    c.task.update(crop_scale={"": (0.67, 1.0), "flickr8k": (0.3, 1.0)}.get(form.name, (0.85, 1.0)))
    c.networks.tower = masked_image_tower(
        start="random", model=model, mask_cell=cell, mask_ratio=1.0 if noisy else 0.6,
        hide_by="noise" if noisy else "token", dtype="float32" if form.name else "bfloat16",
    )  # fmt: skip
    c.networks.patches = patch_predictor(target=target, hidden=(model.width,) if kind == "ema" else ())
    c.selections.draws = draws()
    c.terms.mim = mim(watched=kind == "ema")
    if kind == "ema":
        c.networks.teacher = average(of="tower", decay=0.996)
    c.evaluators.reconstruction = reconstruction(target=target, split=form.held_out, every=c.checkpoint.every)
    if form.name == "flickr8k":
        c.total_steps = 350
    if form.name == "scenes":
        c.total_steps, c.batch_size = 3_000, 256
        c.evaluators.scene_probe = scene_probe(feature="image/mean")
    return c
