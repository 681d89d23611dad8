"""A self-supervised image teacher for photos, from the photos alone: VICReg between two views, each view from [CLS].

    smke train --config=configs/teacher_flickr8k.py --workdir=runs/teacher_flickr8k --config.data.dir=data/flickr8k
    smke export --workdir=runs/teacher_flickr8k --out=runs/teacher_flickr8k/export

The encoder has the shape of the image tower in configs/flickr8k.py, which it can therefore also start.
"""

from smke_jax.config import base, variant_of


def get_config(variant: str = ""):
    c = base()
    c.batch_size = 256
    c.total_steps = 350
    c.passes = ("views",)
    c.data.dir = "data/flickr8k"
    c.data.unit = "images"
    c.data.in_memory = True
    c.data.views = "two_views"
    c.data.crop_scale = (0.3, 1.0)
    c.data.jitter = 0.4
    c.data.grayscale = 0.1
    c.teacher.update(type="data2vec2", image_size=128, patch_size=16, width=192, depth=4, num_heads=3, mlp_dim=384)
    c.teacher.update(norm_order="pre", activation="gelu_tanh", init_std=0.0, token_drop=0.75)
    c.projector = (512, 512)
    c.terms.vicreg = {}
    c.terms.reconstruct = {"weight": 25.0}
    c.optimizer.update(name="muon", learning_rate=2e-3, weight_decay=0.05, clip_norm=1.0)
    c.eval.split = ""
    return variant_of(c, variant)
