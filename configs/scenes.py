"""S-SMKE on procedurally drawn scenes, small enough for two CPU cores: what `smke demo` runs.

    smke train --config=configs/scenes.py --workdir=runs/scenes

`configs/scenes.py:itc` is the same student by ITC alone, from random weights, in the same time; `:itc_init` is that
with the image tower started from the teacher.
"""

from pathlib import Path

import smke_jax
from smke_jax.config import base, split_variant, towers, variant_of

TEACHER = str(Path(smke_jax.__file__).parent / "assets" / "teacher_scenes.safetensors")


def get_config(variant: str = ""):
    kind, form = split_variant(variant, ("itc", "itc_init"))
    c = base()
    c.batch_size = 128
    c.total_steps = 2150
    c.data.source = "scenes"
    c.data.unit = "images"
    c.data.vocab_size = 300
    c.data.max_length = 20
    c.data.crop_scale = (0.85, 1.0)
    c.data.flip = 0.0  # captions say left and right
    c.data.threads = 1  # on two cores a second one costs the training more than it brings
    towers(c, width=64, num_heads=2, mlp_dim=128, activation="relu", norm_order="pre", init_std=0.0)
    c.student.image.update(image_size=32, patch_size=8, depth=3)
    c.student.text.update(depth=2, max_positions=32)
    c.student.token_types = False
    c.terms.itc = {"levels": ("fc1", "out")}
    if kind != "itc":
        c.student.image.init = TEACHER
    if not kind.startswith("itc"):
        c.teacher.checkpoint = TEACHER
        c.terms.target_itc = {"bank_size": 2048, "weight": 0.5, "final_weight": 0.0}
    else:
        c.passes = ("student",)
        c.total_steps = 2400  # in the time of the default's 2150: without the teacher a step is faster
    c.optimizer.update(name="muon", learning_rate=6e-3, weight_decay=0.0, clip_norm=1.0)
    c.eval.split = "gallery"
    c.log.every = 100
    return variant_of(c, form)
