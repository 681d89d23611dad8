"""A self-supervised image teacher for photos, from the photos alone: VICReg between two views, each view from [CLS].

    smke train --config=configs/teacher_flickr8k.py --workdir=runs/teacher_flickr8k --config.task.data=data/flickr8k
    smke export --workdir=runs/teacher_flickr8k --out=runs/teacher_flickr8k/export

The encoder has the shape of the image tower in configs/flickr8k.py, which it can therefore also start.
"""

from smke_jax.forms import FORMS, form_of
from smke_jax.parts import data2vec2, encoder, reconstruct, vicreg


def get_config(variant: str = ""):
    form = FORMS[form_of(variant).name or "flickr8k"]
    c = form.run()
    c.task = form.images(views=2)
    if form.name == "flickr8k":
        c.total_steps = 350
        c.task.update(crop_scale=(0.3, 1.0), jitter=0.4, grayscale=0.1)
        sizes = {"image_size": 128, "patch_size": 16, "width": 192, "depth": 4, "num_heads": 3, "mlp_dim": 384}
    else:
        sizes = {"image_size": 32, "patch_size": 16, "width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
    model = data2vec2(norm_order="pre", activation="gelu_tanh", init_std=0.0, token_drop=0.75, **sizes)
    c.networks.views = encoder(model=model, projector=(512, 512) if form.name == "flickr8k" else (24, 24))
    c.terms.vicreg = vicreg()
    c.terms.reconstruct = reconstruct(weight=25.0)
    c.optimizer.update(name="muon", learning_rate=2e-3, weight_decay=0.05, clip_norm=1.0)
    return c
