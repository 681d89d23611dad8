"""Fine-tuning and linear evaluation of an image encoder on labelled images, as the thesis tests its encoders (3).

    smke train --config=configs/finetune_image.py --workdir=runs/imagenet --config.task.data=data/imagenet
    smke train --config=configs/finetune_image.py:cifar10 --workdir=runs/cifar10
    smke train --config=configs/finetune_image.py:flowers,flickr8k --workdir=runs/flowers

Mean of the patches, LayerNorm, a linear layer; RandAugment, random erasing, mixup, CutMix, label smoothing 0.1, and a
learning rate that decays from layer to layer.  `configs/finetune_image.py:linear` trains the LayerNorm and the linear
layer alone; with other data `--config.networks.classifier.trained=^norm/,^head/` does.

The form flickr8k tunes half of a small DINOv2 at 98 px: minutes on two cores with 1,500 photos.  The encoder begins
with what `smke convert` wrote, or with an export of a run: `--config.networks.classifier.start=runs/ctl/export` takes
the image tower of a student.

The layer decay suits encoders of 6 to 12 layers.  EfficientNet-Lite0 has 16 blocks, and at 0.75 its stem would learn at
0.0075 of the rate: `--config.optimizer.layer_decay=0.9` makes that 0.17.

Published for six layers distilled from Data2Vec2, fine-tuned and linear: ImageNet 76.1 and 71.1, CIFAR-10 97.7 and
93.2, CIFAR-100 87.2 and 77.3; for the image tower of S-SMKE 75.5 and 65.0, 97.6 and 89.7, 85.2 and 71.3.
smke_jax/evaluators/README.md has what was measured here.
"""

from smke_jax.forms import split_variant
from smke_jax.parts import accuracy, classifier, classify, data2vec2, labelled_images, mixup, vit

HEAD = ("^norm/", "^head/")  # what linear evaluation trains
# {data: (fields of the task, split that is evaluated, steps of an epoch at 256, layer decay)}
DATA = {
    "imagenet": ({"layout": "imagenet", "data": "data/imagenet"}, "dev", 5_004, 0.81),
    "cifar10": ({"layout": "cifar10", "data": "data/cifar10"}, "test", 195, 0.75),
    "cifar100": ({"layout": "cifar100", "data": "data/cifar100"}, "test", 195, 0.75),
    "flowers": ({"layout": "folders", "data": "data/flowers", "held_back": 0.2}, "dev", 4, 0.75),
}
VARIANTS = (*DATA, "linear")
SCENES = {"layout": "scenes", "data": ""}


def get_config(variant: str = ""):
    kind, form = split_variant(variant, VARIANTS)
    fields, split, epoch, decay = DATA["imagenet" if kind in ("", "linear") else kind]
    c = form.run()
    c.optimizer.update(
        name="adamw", learning_rate=1e-3, reference_batch=0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01,
        clip_norm=0.0, layer_decay=decay,
    )  # fmt: skip
    if form.name == "":
        c.batch_size, c.total_steps, c.epochs, c.checkpoint.every = 256, 0, 15.0, epoch
        network = {"start": "runs/kd_image/export", "model": data2vec2(depth=6), "dtype": "bfloat16"}
    elif form.name == "flickr8k":
        c.batch_size, c.total_steps, c.epochs, c.checkpoint.every, c.log.every = 48, 0, 4.0, 50, 10
        c.optimizer.learning_rate, epoch = 5e-4, 0
        c.eval_batch_size, fields = 48, fields | {"in_memory": kind == "flowers", "crop_scale": (0.35, 1.0)}
        network = {"start": "weights/dinov2", "model": vit(**form.dinov2), "image_size": 98, "depth": 6}
    elif form.name == "scenes":
        c.total_steps, fields, split, epoch = 300, SCENES | {"crop_scale": (0.7, 1.0)}, "gallery", 0
        network = {"start": form.start}
    else:
        fields, split, epoch = SCENES, "gallery", 0
        network = {"start": "random", "model": vit(**form.sizes, **form.images_of)}
    c.task = labelled_images(**{"rand_magnitude": 9.0, "erasing": 0.25} | fields)
    c.networks.classifier = classifier(trained=HEAD if kind == "linear" else (), **network)
    c.selections.mixup = mixup()
    c.terms.classify = classify(logits="mixed/logits", label="mixed/label", smoothing=0.1)
    c.evaluators.accuracy = accuracy(split=split, every=epoch)
    return c
