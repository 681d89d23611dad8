"""S-SMKE on Flickr8k from scratch: 6,000 photos, no weights from elsewhere.

    smke prepare flickr8k --source=FLICKR8K --out=data/flickr8k --max_side=144
    smke train --config=configs/teacher_flickr8k.py --workdir=runs/teacher_flickr8k --config.data.dir=data/flickr8k
    smke export --workdir=runs/teacher_flickr8k --out=runs/teacher_flickr8k/export
    smke train --config=configs/flickr8k.py --workdir=runs/flickr8k --config.data.dir=data/flickr8k

`configs/flickr8k.py:itc` is the same student by ITC alone, from random weights; it needs no teacher.
"""

from smke_jax.config import base, towers, variant_of


def get_config(variant: str = ""):
    c = base()
    c.batch_size = 256
    c.total_steps = 1600
    c.data.dir = "data/flickr8k"
    c.data.unit = "images"
    c.data.in_memory = True
    c.data.vocab_size = 4000
    c.data.max_length = 20
    c.data.crop_scale = (0.35, 1.0)
    c.data.jitter = 0.4
    towers(c, width=192, num_heads=3, mlp_dim=384, activation="gelu_tanh", norm_order="pre", init_std=0.0)
    c.student.image.update(image_size=128, patch_size=16, depth=4, token_drop=0.5)
    c.student.text.update(depth=3, max_positions=64, dropout=0.2)
    c.terms.itc = {"levels": ("fc1", "out")}
    if variant == "itc":
        c.passes = ("student",)
    else:
        c.teacher.checkpoint = c.student.image.init = "runs/teacher_flickr8k/export"
        c.terms.target_itc = {"bank_size": 4096, "weight": 0.5}
    c.optimizer.update(name="muon", learning_rate=2e-3, weight_decay=0.5, clip_norm=1.0)
    c.eval.every = c.checkpoint.every = 200
    c.log.every = 25
    return variant_of(c, variant, ("itc",))
