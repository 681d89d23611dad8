"""Batch size × devices at an equal number of examples: the students of configs/scenes.py and configs/flickr8k.py.

    smke sweep --config=configs/scaling.py --out=runs/scaling

trains the S-SMKE student on drawn scenes for every combination of `get_sweep` and compares them; combinations that
need more devices than there are get skipped. One of them alone:

    smke train --config=configs/scaling.py --workdir=runs/scaling_512 --config.batch_size=512

`configs/scaling.py:flickr8k` is the student of photos and needs what the head of configs/flickr8k.py names. The
learning rate stands for a batch of 256 and grows in proportion to the batch, as in every config; `--axis
config.optimizer.learning_rate=…` finds out whether that suits a batch.
"""

from pathlib import Path

from smke_jax.config import variant_of
from smke_jax.programs.train import load_config

EXAMPLES = 2**18  # of each run: 13 epochs of the scenes, 44 of Flickr8k's training photos


def get_config(variant: str = ""):
    recipe = "flickr8k.py" if variant == "flickr8k" else "scenes.py"
    c = load_config(str(Path(__file__).with_name(recipe)))
    c.total_steps = EXAMPLES // c.get_ref("batch_size")  # follows --config.batch_size
    c.terms.target_itc.bank_size = 4096  # no smaller than the largest batch
    c.eval.every = 0
    c.log.every = 16
    return c if variant == "flickr8k" else variant_of(c, variant)


def get_sweep(variant: str = ""):
    if variant == "smoke":
        return {"config.batch_size": (8, 16), "config.num_devices": (1, 2)}
    return {"config.batch_size": (128, 256, 512, 1024, 2048), "config.num_devices": (1, 2, 4, 8)}
