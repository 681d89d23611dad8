"""The sizes in which every recipe comes: the thesis' own, small ones for Flickr8k and for drawn scenes, and a tiny one.

A form makes parts.  A recipe puts them together:

    def get_config(form: str = ""):
        form = form_of(form)
        c = form.run()
        c.task = form.pairs()
        c.networks.teacher = form.teacher()
        c.networks.student = form.student(head=form.width)
        c.terms.itc = itc(levels=("fc1", "out"))
        c.terms.mine = mine(option=0.5)
        c.evaluators.retrieval = form.retrieval()
        return c
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import smke_jax
from smke_jax.errors import UserError
from smke_jax.parts import base, part

FLICKR8K_TEACHER = "runs/teacher_flickr8k/export"


class Thesis:
    """What the image-text runs of the thesis share: data, pretrained parts, two GPUs, 7 epochs (spec 0.3-0.6)."""

    name = ""
    width = 768  # of the towers and of the teacher's feature
    classes = 1000  # of the teacher that classifies
    patches = {}  # fields of the image tower whose patches are compared with the teacher's, one by one
    held_out = "dev"  # the split that runs are evaluated on
    augmentations = 8  # random views of every image whose features are stored
    whole_photos = False  # whether LiT stores features of the whole photo, as it is evaluated, in place of views
    frozen_words = 0  # first layers of the text tower that LiT does not train
    feature_dropout = 0.3  # of LiT's projections

    def run(self, *, batch_size: int = 512, total_steps: int = 44_636, epoch: int = 6_376) -> ConfigDict:
        """A config without parts; an epoch has so many steps."""
        c = base()
        c.batch_size, c.total_steps, c.checkpoint.every = batch_size, total_steps, epoch
        return c

    def pairs(self, **fields: Any) -> ConfigDict:
        """The task: 3.3 million pairs of COCO and Conceptual Captions."""
        given = {"data": ("data/coco", "data/cc3m", "data/cc12m"), "tokenizer": "weights/bert-base-uncased/tokenizer"}
        return part("pairs", **given | fields)

    def images(self, **fields: Any) -> ConfigDict:
        """The task of a run without captions: ImageNet's images."""
        return part("images", **{"data": ("data/imagenet",)} | fields)

    def student(
        self, *, depth: int = 6, image: dict | None = None, text: dict | None = None, shared: ConfigDict | None = None,
        **fields: Any,
    ) -> ConfigDict:  # fmt: skip
        """The first `depth` layers of Data2Vec2 and BERT and what they share; other fields of the towers in dicts."""
        given = {
            "head": self.width, "dtype": "bfloat16", "image_start": "weights/data2vec2-base",
            "text_start": "weights/bert-base-uncased",
        }  # fmt: skip
        return part(
            "two_towers",
            image=part("data2vec2", **{"depth": depth} | (image or {})),
            text=part("bert", **{"depth": depth} | (text or {})),
            shared=shared or self.transformer(),
            **given | fields,
        )

    def transformer(self, **fields: Any) -> ConfigDict:
        """Transformer blocks that both towers share."""
        return part("transformer", **fields)

    def mlp(self, **fields: Any) -> ConfigDict:
        """SHRe's MLP that both towers share."""
        return part("mlp", **fields)

    def teacher(self, **fields: Any) -> ConfigDict:
        """A frozen BEiT v2."""
        given = {"start": "weights/beitv2-base-pt1k", "model": part("beit"), "dtype": "bfloat16"}
        return part("frozen", **given | fields)

    def classifier(self, **fields: Any) -> ConfigDict:
        """A frozen ResNet-50 of ImageNet's classes."""
        given = {"start": "weights/resnet50-a1", "model": part("resnet"), "dtype": "bfloat16"}
        return part("frozen", **given | fields)

    def autoencoder(self, **fields: Any) -> ConfigDict:
        """Learns 1024 codes of 16 channels."""
        return part("autoencoder", **{"dtype": "bfloat16"} | fields)

    def quantizer(self, **fields: Any) -> ConfigDict:
        """The frozen codes."""
        return part("quantizer", **{"start": "runs/image_vq/export"} | fields)

    def bank(self, size: int) -> int:
        """Entries of a memory bank."""
        return size

    def tuning(self) -> ConfigDict:
        """A config without parts for pretrained towers of which little or nothing is trained."""
        c = self.run(total_steps=2 * 6_376)
        c.optimizer.update(learning_rate=1e-3, weight_decay=1e-4, reference_batch=0)
        return c

    def captioned(self) -> ConfigDict:
        """The task of these towers: the same pairs, with the tokenizer of the text tower."""
        return self.pairs()

    def image_towers(self) -> dict[str, ConfigDict]:
        """{name: frozen image tower}, the best one first; each makes '<name>/feature'."""
        given = {"start": "weights/dinov2-base", "makes": "dinov2", "pools": ("cls", "mean"), "dtype": "bfloat16"}
        return {"dinov2": part("frozen", **given)}

    def text_tower(self, **fields: Any) -> ConfigDict:
        """A pretrained text tower, which makes 'words/feature'."""
        given = {"start": "weights/bert-base-uncased", "dropout": 0.1, "dtype": "bfloat16"}
        return part("text_tower", **given | fields)

    def new_text_tower(self) -> ConfigDict:
        """A text tower of random weights, which has seen no captions."""
        return part("text_tower", start="random", model=part("bert"), dropout=0.1, dtype="bfloat16")

    def fine_tuning(self) -> ConfigDict:
        """A config without parts for a student of pretrained towers of which all is trained."""
        c = self.run()
        c.optimizer.lr_rules = (("_encoder/", 0.1),)
        return c

    def pretrained(self, **fields: Any) -> ConfigDict:
        """The first layers of DINOv2 and of BERT and what they share."""
        given = {
            "image": part("vit", depth=6, patch_size=14, layer_scale=1.0), "text": part("bert", depth=6),
            "shared": self.transformer(), "dtype": "bfloat16", "image_start": "weights/dinov2-base",
            "text_start": "weights/bert-base-uncased",
        }  # fmt: skip
        return part("two_towers", **given | fields)

    def teachers(self) -> dict[str, tuple[ConfigDict, int, int]]:
        """{name: (frozen teacher, channels of its [CLS], classes or 0)}: DINOv2, and an EfficientNet-Lite0."""
        dinov2, lite0 = part("vit", patch_size=14, layer_scale=1.0), part("efficientnet_lite", num_classes=1000)
        return {
            "dinov2": (part("frozen", start="weights/dinov2-base", model=dinov2, dtype="bfloat16"), 768, 0),
            "lite0": (part("frozen", start="weights/lite0", model=lite0, dtype="bfloat16"), 1280, 1000),
        }

    def retrieval(self, **fields: Any) -> ConfigDict:
        """Retrieval on the dev split after every epoch."""
        return part("retrieval", **{"every": 6_376} | fields)


class Flickr8k(Thesis):
    """The same recipe with a small student on the photos of Flickr8k: minutes on two cores.

    The image tower starts from the teacher that configs/teacher_flickr8k.py makes of the photos alone, as in the
    thesis every student starts from pretrained towers.
    """

    name = "flickr8k"
    width = 192
    classes = 256
    # The teacher's size, and nothing dropped: every patch needs its counterpart there.
    patches = {"image_size": 128, "token_drop": 0.0}
    dinov2 = {"width": 384, "num_heads": 6, "mlp_dim": 1536, "patch_size": 14, "layer_scale": 1.0}  # ViT-S/14
    augmentations = 1  # the image towers embed some 6 photos a second on two CPU cores, with their close-ups
    whole_photos = True
    frozen_words = 3
    feature_dropout = 0.5  # with less, some 30 epochs of so few photos overfit

    def run(self, **_: Any) -> ConfigDict:
        c = base()
        c.batch_size, c.total_steps, c.checkpoint.every, c.log.every = 256, 400, 100, 25
        c.optimizer.update(name="muon", learning_rate=2e-3, weight_decay=0.5, clip_norm=1.0)
        return c

    def _photos(self) -> dict:
        return {"data": ("data/flickr8k",), "in_memory": True, "crop_scale": (0.35, 1.0)}

    def pairs(self, **fields: Any) -> ConfigDict:
        small = {"unit": "images", "vocab_size": 4000, "max_length": 20, "jitter": 0.4}
        return part("pairs", **fields | self._photos() | small)

    def images(self, **fields: Any) -> ConfigDict:
        return part("images", **fields | self._photos())

    def _layers(self) -> dict:
        return {"num_heads": 3, "mlp_dim": 384, "activation": "gelu_tanh", "init_std": 0.0}

    def student(self, *, depth: int = 0, image=None, text=None, shared=None, **fields: Any) -> ConfigDict:
        tower = {"width": self.width, "norm_order": "pre", **self._layers()}
        own_image = {"image_size": 96, "patch_size": 16, "depth": 4, "token_drop": 0.5}
        own_text = {"depth": 2, "max_positions": 64, "dropout": 0.2}
        given = {"head": self.width, "image_start": FLICKR8K_TEACHER}
        return part(
            "two_towers",
            image=part("data2vec2", **tower | own_image | (image or {})),
            text=part("bert", **tower | own_text | (text or {})),
            shared=shared or self.transformer(),
            **given | fields,
        )

    def transformer(self, **fields: Any) -> ConfigDict:
        return part("transformer", **self._layers() | fields)

    def mlp(self, **fields: Any) -> ConfigDict:
        layers = {key: value for key, value in self._layers().items() if key != "num_heads"}
        return part("mlp", **layers | fields)

    def teacher(self, **fields: Any) -> ConfigDict:
        # Photos have one teacher, whatever the thesis has; of a Data2Vec2 there is no last norm to leave out.
        kept = {key: value for key, value in fields.items() if key.startswith("stand_in")}
        return part("frozen", **{"start": FLICKR8K_TEACHER} | kept)

    def classifier(self, **fields: Any) -> ConfigDict:
        return self.teacher(stand_in_classes=self.classes)

    def autoencoder(self, **fields: Any) -> ConfigDict:
        return part("autoencoder", num_codes=128, code_dim=8, num_heads=3, mlp_dim=384, activation="gelu_tanh")

    def quantizer(self, **fields: Any) -> ConfigDict:
        return part("quantizer", **{"start": "stage:codes", "num_codes": 128, "code_dim": 8} | fields)

    def bank(self, size: int) -> int:
        return min(size, 4096)

    def tuning(self) -> ConfigDict:
        c = base()
        c.batch_size, c.total_steps, c.checkpoint.every, c.log.every = 480, 420, 105, 20
        c.eval_batch_size = 32  # a CPU embeds more images in a second when their activations stay in its cache
        c.optimizer.update(learning_rate=1e-3, weight_decay=1e-2, clip_norm=1.0, reference_batch=0)
        return c

    def captioned(self) -> ConfigDict:
        whole = {"max_length": 24, "tokenizer": "weights/minilm/tokenizer", "crop_scale": (0.6, 1.0)}
        return part("pairs", **self._photos() | {"unit": "images"} | whole)

    def image_towers(self) -> dict[str, ConfigDict]:
        fields = {
            "lite0": {"layers": (11, 13, 15, 16, 17)},
            "dinov2": {"layers": (7, 9, 11, 12), "pools": ("cls", "mean")},
            "lite2": {"layers": (15, 18, 20, 21, 22)},
        }
        return {
            name: part("frozen", start=f"weights/{name}", makes=name, image=name, close_up=0.8, **own)
            for name, own in fields.items()
        }

    def text_tower(self, **fields: Any) -> ConfigDict:
        return part("text_tower", **{"start": "weights/minilm", "dropout": 0.1} | fields)

    def new_text_tower(self) -> ConfigDict:
        sizes = {"width": 256, "depth": 3, "num_heads": 4, "mlp_dim": 1024, "norm_order": "pre", "max_positions": 64}
        return part("text_tower", start="random", model=part("bert", **sizes), dropout=0.2)

    def fine_tuning(self) -> ConfigDict:
        c = self.tuning()
        c.batch_size, c.total_steps = 128, 420
        c.optimizer.lr_rules = (("_encoder/", 0.1),)
        return c

    def pretrained(self, **fields: Any) -> ConfigDict:
        # 49 patches, of which a step sees 37: on two cores the towers cost about as much as each other.
        image = part("vit", **self.dinov2, image_size=98, depth=6, token_drop=0.25)
        text = part("bert", width=384, depth=6, num_heads=12, mlp_dim=1536, dropout=0.1)
        given = {
            "image": image, "text": text, "image_start": "weights/dinov2", "text_start": "weights/minilm",
            "shared": part("transformer", num_heads=6, mlp_dim=1536, init_std=0.0, dropout=0.1),
        }  # fmt: skip
        return part("two_towers", **given | fields)

    def teachers(self) -> dict[str, tuple[ConfigDict, int, int]]:
        dinov2, lite0 = part("vit", **self.dinov2, image_size=182), part("efficientnet_lite", num_classes=1000)
        return {
            "dinov2": (part("frozen", start="weights/dinov2", model=dinov2), 384, 0),
            "lite0": (part("frozen", start="weights/lite0", model=lite0), 1280, 1000),
        }

    def retrieval(self, **fields: Any) -> ConfigDict:
        return part("retrieval", **fields | {"every": 0})


class Drawn(Thesis):
    """What the two sizes for drawn scenes share."""

    held_out = "gallery"
    augmentations = 2

    def tuning(self) -> ConfigDict:
        return self.run()

    def captioned(self) -> ConfigDict:
        return self.pairs(unit="images")

    def image_towers(self) -> dict[str, ConfigDict]:
        return {"scenes": self.teacher(makes="scenes", pools=("cls", "mean"))}

    def new_text_tower(self) -> ConfigDict:
        return self.text_tower()  # it is one

    def fine_tuning(self) -> ConfigDict:
        return self.run()

    def pretrained(self, **fields: Any) -> ConfigDict:
        return self.student(**fields)

    def teachers(self) -> dict[str, tuple[ConfigDict, int, int]]:
        # Drawn scenes have one teacher, whose classes are stand-ins.
        return {"dinov2": (self.teacher(), self.width, 0), "lite0": (self.classifier(), self.width, self.classes)}

    def retrieval(self, **fields: Any) -> ConfigDict:
        return part("retrieval", **fields | {"split": "gallery", "every": 0})


class Smoke(Drawn):
    """The same recipe on the built-in scenes, small enough for two steps in a test."""

    name = "smoke"
    width = 32
    classes = 256
    sizes = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
    images_of = {"image_size": 32, "patch_size": 16}

    def run(self, **_: Any) -> ConfigDict:
        c = base()
        c.batch_size, c.total_steps, c.log.every, c.eval_batch_size = 16, 2, 1, 64
        return c

    def pairs(self, **fields: Any) -> ConfigDict:
        small = {"source": "few_scenes", "data": (), "vocab_size": 300, "max_length": 12}
        return part("pairs", **fields | small)

    def images(self, **fields: Any) -> ConfigDict:
        return part("images", **fields | {"source": "few_scenes", "data": ()})

    def student(self, *, depth: int = 0, image=None, text=None, shared=None, **fields: Any) -> ConfigDict:
        given = {"head": self.width, "dtype": "bfloat16"}
        fields = {key: value for key, value in fields.items() if "start" not in key}
        return part(
            "two_towers",
            image=part("data2vec2", **self.sizes | self.images_of | (image or {})),
            text=part("bert", **self.sizes | (text or {})),
            shared=shared or self.transformer(),
            **given | fields,
        )

    def pretrained(self, **fields: Any) -> ConfigDict:
        image = {**self.sizes, **self.images_of, "width": 24, "layer_scale": 1.0}
        given = {"width": self.width, "dtype": "bfloat16", "shared": self.transformer()}
        return part("two_towers", image=part("vit", **image), text=part("bert", **self.sizes), **given | fields)

    def transformer(self, **fields: Any) -> ConfigDict:
        return part("transformer", num_heads=2, mlp_dim=48, **fields)

    def mlp(self, **fields: Any) -> ConfigDict:
        return part("mlp", mlp_dim=48, **fields)

    def teacher(self, **fields: Any) -> ConfigDict:
        model = part(fields["model"].type if "model" in fields else "beit", **self.sizes, **self.images_of)
        given = {"start": "random", "model": model, "dtype": "bfloat16"}
        return part("frozen", **fields | given)

    def classifier(self, **fields: Any) -> ConfigDict:
        kept = {key: value for key, value in fields.items() if key == "final_norm"}
        return self.teacher(stand_in_classes=self.classes, **kept)

    def autoencoder(self, **fields: Any) -> ConfigDict:
        return part("autoencoder", num_codes=24, code_dim=4, num_heads=2, mlp_dim=48, dtype="bfloat16")

    def quantizer(self, **fields: Any) -> ConfigDict:
        return part("quantizer", **fields | {"start": "random", "num_codes": 24, "code_dim": 4})

    def bank(self, size: int) -> int:
        return min(size, 40)

    def text_tower(self, **fields: Any) -> ConfigDict:
        return part("text_tower", start="random", model=part("bert", **self.sizes), **fields)


class Scenes(Drawn):
    """The same recipe on drawn scenes, small enough for two CPU cores; its teacher comes with the package."""

    name = "scenes"
    width = 64
    classes = 256
    start = str(Path(smke_jax.__file__).parent / "shipped" / "teacher_scenes.safetensors")
    tower = {"width": 64, "norm_order": "pre"}
    layers = {"num_heads": 2, "mlp_dim": 128, "activation": "relu", "init_std": 0.0}

    def run(self, **_: Any) -> ConfigDict:
        c = base()
        c.batch_size, c.total_steps, c.log.every = 128, 2150, 100
        c.optimizer.update(name="muon", learning_rate=6e-3, weight_decay=0.0, clip_norm=1.0)
        return c

    def _drawn(self) -> dict:
        # Captions say left and right: nothing is mirrored.  On two cores a second thread costs the training more than
        # it brings.
        return {"source": "scenes", "data": (), "crop_scale": (0.85, 1.0), "flip": 0.0, "threads": 1}

    def pairs(self, **fields: Any) -> ConfigDict:
        small = {"unit": "images", "vocab_size": 300, "max_length": 20}
        return part("pairs", **fields | self._drawn() | small)

    def images(self, **fields: Any) -> ConfigDict:
        return part("images", **fields | self._drawn())

    def student(self, *, depth: int = 0, image=None, text=None, shared=None, **fields: Any) -> ConfigDict:
        own_image = {"image_size": 32, "patch_size": 8, "depth": 3}
        given = {"head": self.width, "image_start": self.start}
        return part(
            "two_towers",
            image=part("data2vec2", **self.tower | self.layers | own_image | (image or {})),
            text=part("bert", **self.tower | self.layers | {"depth": 2, "max_positions": 32} | (text or {})),
            shared=shared or self.transformer(),
            **given | fields,
        )

    def transformer(self, **fields: Any) -> ConfigDict:
        return part("transformer", **self.layers | fields)

    def mlp(self, **fields: Any) -> ConfigDict:
        return part("mlp", **{key: value for key, value in self.layers.items() if key != "num_heads"} | fields)

    def teacher(self, **fields: Any) -> ConfigDict:
        kept = {key: fields[key] for key in fields if key.startswith("stand_in") or key in ("makes", "pools")}
        return part("frozen", **{"start": self.start} | kept)

    def classifier(self, **fields: Any) -> ConfigDict:
        return self.teacher(stand_in_classes=self.classes)

    def autoencoder(self, **fields: Any) -> ConfigDict:
        return part("autoencoder", num_codes=128, code_dim=8, num_heads=2, mlp_dim=128, activation="relu")

    def quantizer(self, **fields: Any) -> ConfigDict:
        return part("quantizer", **{"start": "stage:codes", "num_codes": 128, "code_dim": 8} | fields)

    def bank(self, size: int) -> int:
        return min(size, 2048)

    def text_tower(self, **fields: Any) -> ConfigDict:
        sizes = {**self.tower, **self.layers, "depth": 2, "max_positions": 32}
        return part("text_tower", start="random", model=part("bert", **sizes), **fields)


FORMS = {form.name: form() for form in (Thesis, Flickr8k, Scenes, Smoke)}


def form_of(name: str) -> Thesis:
    """The form of that name, '' being the thesis'; raises UserError for another name."""
    return split_variant(name)[1]


def split_variant(variant: str, known: tuple[str, ...] = (), alone: tuple[str, ...] = ()) -> tuple[str, Thesis]:
    """('before', the form) of 'before,flickr8k': one of `known`, and one of the FORMS; either may be left out.

    alone: those of `known` that have one size, and so no form
    """
    kind, _, form = variant.rpartition(",")
    if form in known and not kind:
        kind, form = form, ""
    if kind not in ("", *known) or form not in FORMS:
        kinds = f"{', '.join(known)}, alone or with a form (as {known[0]},smoke); forms: " if known else ""
        raise UserError(f"unknown variant {variant!r}: there are {kinds}{', '.join(filter(None, FORMS))}")
    if kind in alone and form:
        raise UserError(
            f"variant {variant!r}: {kind} is of one size, which no form changes: give {kind} or {form} alone"
        )
    return kind, FORMS[form]
