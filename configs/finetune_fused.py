"""Retrieval fine-tuning by contrast and matching, after a pretraining with a fusion encoder, in two stages.

    smke train --config=configs/finetune_fused.py --workdir=runs/finetuned_mamo
    smke train --config=configs/finetune_fused.py:flickr8k --workdir=runs/finetuned_mamo_flickr8k
    smke train --config=configs/finetune_fused.py:albef,flickr8k --workdir=runs/finetuned_albef_flickr8k

The first stage is configs/mamo.py, or configs/albef.py with `:albef`, configs/denoise.py with `:denoise`; the second
begins with its export and lies beside it.  Without a name before the form the first stage is MAMO.  Variants of the
first stage follow its name: `:mamo_seed`, `:denoise_pixel`, `:denoise_pixel_norm`.  The losses of masked views are left
out.

- Without a form: ALBEF's fine-tuning (spec B.3) of any of them, ten epochs of Flickr30K at a batch of 256, from 1e-5
  down to 1e-6, weight decay 0.02, and every parameter at the same rate.  ALBEF goes on at 384 pixels:
  `--config.networks.towers.image.image_size=384`.  Its RandAugment and its momentum encoder are left out.  The seed's
  authors have a rate of 1e-4, 18 epochs and a batch of 144.
- flickr8k, scenes, smoke: the data, the steps and the optimizer of the stage before, its rates divided by ten.

Published (the seed, after both stages on Flickr30K, its test split, the best 128 ordered anew): image to text
67.8 / 88.1 / 94.3, text to image 55.56 / 79.14 / 84.94.
"""

from pathlib import Path

from smke_jax.config_files import load_config
from smke_jax.forms import split_variant
from smke_jax.fused_forms import fused_run, published, reranked
from smke_jax.parts import fused_itm, hard_negatives, itc

ONE_SIZE = ("mamo_seed",)
VARIANTS = ("mamo", *ONE_SIZE, "albef", "denoise", "denoise_pixel", "denoise_pixel_norm")


def get_config(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS, alone=ONE_SIZE)
    before = _before(variant)
    c = fused_run(form)
    c.batch_size, c.task = before.batch_size, before.task
    if not form.name:
        c.batch_size, c.total_steps, c.checkpoint.every = 256, 10 * 566, 566
        views = {"crop_scale": (0.5, 1.0), "crop_ratio": (3 / 4, 4 / 3), "flip": 0.5}
        c.task.update(data=("data/flickr30k",), max_length=30, **views)
        published(c, learning_rate=1e-5, final_rate=1e-6, warmup_fraction=0.0)
    else:
        c.optimizer = before.optimizer
        for rate in ("learning_rate", "final_rate"):
            c.optimizer[rate] /= 10
    c.networks.towers = before.networks.towers
    c.networks.towers.update(
        start=f"stage:{kind or VARIANTS[0]}", image_start="random", text_start="random", fusion_start="random",
        mask_cell=0,
    )  # fmt: skip
    c.selections.hard_negatives = hard_negatives(same_image="masked")
    c.terms.itc = itc(levels=("out",), same_image="positive")
    c.terms.itm = fused_itm()
    c.evaluators.retrieval = form.retrieval(every=0)
    c.evaluators.rerank = reranked(form)
    return c


def get_stages(variant: str = ""):
    name = split_variant(variant, VARIANTS, alone=ONE_SIZE)[0] or VARIANTS[0]
    return {name: _before(variant), "finetuned": get_config(variant)}


def _before(variant: str):
    kind, form = split_variant(variant, VARIANTS, alone=ONE_SIZE)
    name, _, of_it = (kind or VARIANTS[0]).partition("_")
    own = ",".join(filter(None, (of_it, form.name)))
    return load_config(f"{Path(__file__).with_name(f'{name}.py')}:{own}".removesuffix(":"))
