"""A self-supervised image teacher from images alone: contrast between two views of each scene, some of them gray.

    smke train --config=configs/teacher_scenes.py --workdir=runs/teacher_scenes

Of the views 30 % are gray: they leave shape, texture, size and place, where colours alone would tell most scenes apart.
Source: SimCLR (Chen et al. 2020), with a learned temperature.  The negatives of a first view are the second views of
other scenes, and the other way about.

2026-11-28, one core of a Xeon: about 8 minutes; probes in smke_jax/shipped/README.md.
"""

from smke_jax.forms import FORMS, form_of
from smke_jax.parts import data2vec2, encoder, itc, scene_probe


def get_config(variant: str = ""):
    form = FORMS[form_of(variant).name or "scenes"]
    c = form.run()
    c.task = form.images(views=2)
    c.task.update(crop_scale=(0.8, 1.0), flip=0.0, jitter=0.2, grayscale=0.3)
    if form.name == "scenes":
        c.batch_size, c.total_steps = 512, 600
        sizes = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 3, "num_heads": 2, "mlp_dim": 128}
    else:
        sizes = {"image_size": 32, "patch_size": 16, "width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
    model = data2vec2(norm_order="pre", activation="relu", init_std=0.0, **sizes)
    c.networks.views = encoder(model=model, projector=(256, 256) if form.name == "scenes" else (24, 24))
    c.terms.itc = itc(pair=("view1", "view2"), levels=("projection",))
    c.optimizer.update(name="muon", learning_rate=3e-3, weight_decay=0.0, clip_norm=1.0)
    c.evaluators.scene_probe = scene_probe()
    return c
