"""A self-supervised image teacher from images alone: VICReg between two views, and each view from its [CLS].

    smke train --config=configs/teacher_scenes.py --workdir=runs/teacher_scenes

2026-11-22, two CPU cores shared with other work: about 21 minutes; probes in smke_jax/assets/README.md.
"""

from smke_jax.config import base, variant_of


def get_config(variant: str = ""):
    c = base()
    c.batch_size = 256
    c.total_steps = 3000
    c.passes = ("views",)
    c.data.source = "scenes"
    c.data.unit = "images"
    c.data.views = "two_views"
    c.data.crop_scale = (0.8, 1.0)
    c.data.flip = 0.0
    c.data.jitter = 0.2
    c.teacher.update(type="data2vec2", image_size=32, patch_size=8, width=64, depth=3, num_heads=2, mlp_dim=128)
    c.teacher.update(norm_order="pre", activation="relu", init_std=0.0)
    c.projector = (256, 256)
    c.terms.vicreg = {"weight": 1.0}
    c.terms.reconstruct = {"weight": 200.0}
    c.optimizer.update(name="muon", learning_rate=3e-3, weight_decay=0.0, clip_norm=1.0)
    c.eval.split = ""
    c.log.every = 100
    return variant_of(c, variant)
