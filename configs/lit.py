"""LiT on stored features: frozen image towers, a text tower tuned or frozen, and a projection of each.

    smke prepare flickr8k --source=FLICKR8K --out=data/flickr8k --max_side=144
    smke train --config=configs/lit.py:flickr8k --workdir=runs/lit --config.task.data=data/flickr8k

The frozen towers embed random views of every photo once.  Training then reads these features alone, thousands of
photos a second.  Locked-image tuning: Zhai et al. 2022.  The weights are those of `smke_jax/convert/README.md`.
"""

from smke_jax.parts import base, frozen, itc, pairs, projections, retrieval, stored_features, text_tower

VARIANTS = ("one_tower", "frozen_text")


def get_config(variant: str = ""):
    c = base()
    c.batch_size, c.total_steps, c.log.every = 500, 600, 25
    c.task = pairs(data=("data/flickr8k",), unit="images", max_length=32, crop_scale=(0.5, 1.0),
                   tokenizer="weights/minilm/tokenizer")
    c.networks.scenes = frozen(start="weights/efficientnet-lite0", makes="scenes", image="scenes_image")
    c.networks.objects = frozen(start="weights/dinov2-focus", makes="objects", image="objects_image",
                                pools=("cls", "mean"), layers=(7, 9, 11, 12))
    c.networks.words = text_tower(start="weights/minilm", dropout=0.1)
    c.networks.student = projections(image=("scenes/feature", "objects/feature"), dropout=0.3)
    c.terms.itc = itc(levels=("out",))
    c.assets.photos = stored_features(
        of=("scenes/feature", "objects/feature"), augmentations=4, evaluated=("dev",), folder="features/flickr8k")
    c.optimizer.update(learning_rate=1e-3, weight_decay=0.01, lr_rules=(("^words/", 0.1),))
    c.evaluators.retrieval = retrieval()
    return c
