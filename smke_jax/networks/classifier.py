"""An image encoder with a linear classifier on it: fine-tuned as a whole, or with the classifier alone trained."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from smke_jax.convert.params_file import params_path
from smke_jax.errors import UserError
from smke_jax.facts import Described, NamesFromTask
from smke_jax.models.classifier import build_classifier
from smke_jax.models.towers import IMAGE_TOWERS
from smke_jax.networks.base import Network, Start
from smke_jax.networks.description import check_depth, described_by
from smke_jax.networks.encoders import check_pixels
from smke_jax.networks.start import RANDOM, tower_start
from smke_jax.passes.base import statistics_of
from smke_jax.passes.classify import Mixing, classify_image

# What a description holds besides a tower's fields.
OF_FILES = ("mean", "std", "image_size", "final_norm", "num_classes")


def classifier(
    *,
    class_names: NamesFromTask,
    start: str,
    model: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    depth: int | None = None,
    dropout: float = 0.0,
    token_drop: float = 0.0,
    drop_path: float = 0.0,
    trained: tuple[str, ...] = (),
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    mix_probability: float = 0.9,
    cutmix_share: float = 0.5,
    remat: str = "none",
    dtype: str = "float32",
    described: Described = None,
) -> Network:
    """'class/logits' and 'class/feature' of 'image', and 'mixed/…' for terms that read it (spec 3).

    class_names: of the task
    start:   an image encoder that `smke convert` wrote, or an export: of a run that trained one, of an image-text
             student its image tower, or of a classifier its encoder; 'random' needs `model`
    model:   what it is, a part such as 'vit'; the file of `start` says it, and what is set here has to agree with it
    image_size: pixels; None is as the file says.  Positions are interpolated for another size
    depth:   how many of the first layers are kept; None is all of them
    dropout, token_drop, drop_path: of the encoder while it is trained, whatever the file was trained with
    trained: () trains everything; ('^norm/', '^head/') is linear evaluation
    mixup_alpha, cutmix_alpha, mix_probability, cutmix_share: see `smke_jax.passes.classify.Mixing`
    remat, dtype: of the encoder
    """
    said = dict(
        described
        or described_by(
            start, model, IMAGE_TOWERS, tower="image", what="tower of images", example="vit", besides=OF_FILES,
        )
    )  # fmt: skip
    if start != RANDOM and not described and params_path(start).is_file():
        check_pixels(start, said)
    known = IMAGE_TOWERS[said["type"]].__dataclass_fields__
    chosen = {"image_size": image_size, "depth": depth}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    drops = {"dropout": dropout, "token_drop": token_drop, "drop_path": drop_path}
    # A 0 counts too: what an export was trained with is not what it is tuned with.
    chosen |= {name: share for name, share in drops.items() if share or name in known}
    if wrong := [name for name in chosen if name not in known]:
        raise UserError(f"{wrong[0]}: an encoder of type {said['type']!r} has no such field; leave it out")
    check_depth(start, said.get("depth"), depth)
    fields = {**{name: value for name, value in said.items() if name in (*known, "type")}, **chosen}
    fields |= {"num_classes": 0} if "num_classes" in fields else {}
    pixels = {name: list(value) for name, value in statistics_of(said).items()}
    description = {"type": "classifier", "image": fields, "class_names": list(class_names), **pixels, "dtype": dtype}
    module = build_classifier({**description, "remat": remat})
    size = fields.get("image_size", 224)

    def init(key, specs):
        return module.init(key, jnp.zeros((2, size, size, 3)))["params"]

    def begin(shapes) -> Start | None:
        if start == RANDOM:
            return None
        found = tower_start("image", start, shapes["encoder"], {**fields, "image_size": size})
        return found._replace(params={"encoder": found.params}, origins={"encoder": found.origins[""]})

    mixing = Mixing(mixup_alpha, cutmix_alpha, mix_probability, cutmix_share)
    return Network(
        init,
        lambda name, specs: classify_image(module, name, mixing=mixing, **statistics_of(said)),
        begin,
        trained=tuple(trained) or True,
        # The only norm of a post-norm encoder's own stands before its first block, that of the others behind the last.
        first_layer=("encoder/norm/",) if getattr(module.encoder, "norm_order", "pre") == "post" else (),
        sizes={"image": size},
        export=lambda params, slots: (params, description),
        described=said if start != RANDOM else {},
    )
