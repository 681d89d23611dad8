"""A pretrained image encoder by itself: trained further, or frozen (spec A.1)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.facts import Described
from smke_jax.models.teachers import TEACHERS, build_teacher
from smke_jax.models.towers import IMAGE_TOWERS
from smke_jax.networks.base import Network, Start
from smke_jax.networks.description import check_depth, described_by
from smke_jax.networks.encoders import check_pixels
from smke_jax.networks.inherit import check_keep
from smke_jax.networks.start import RANDOM, tower_start
from smke_jax.passes.base import statistics_of
from smke_jax.passes.features import check_pools, features

KINDS = {name: TEACHERS[name] for name in IMAGE_TOWERS}


def image_tower(
    *,
    start: str,
    model: Mapping[str, Any] | None = None,
    makes: str = "photo",
    image: str = "image",
    image_size: int | None = None,
    depth: int | None = None,
    keep: str = "first",
    pools: tuple[str, ...] = ("cls",),
    layers: tuple[int, ...] = (),
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    dropout: float = 0.0,
    token_drop: float = 0.0,
    trained: bool = True,
    remat: str = "none",
    dtype: str = "float32",
    described: Described = None,
) -> Network:
    """An image encoder that makes '<makes>/feature' (B, F) of images, from what `smke convert` or `smke export` wrote.

    start:   the file says what model it is, of a CLIP or an export of image and text their image tower; 'random' needs
             `model`, a part such as 'vit'
    model:   fields that differ from the part's defaults have to agree with the file
    image:   the array of the task that it reads; 'image' where the task makes no other view
    image_size: pixels; positions are interpolated for another size than the file's.  None is as the file says
    depth:   how many layers are kept; None is all of them
    keep:    which ones: first | even | last
    pools, layers: what a feature is made of, see `smke_jax.passes.features.features`
    mean, std: of the pixels; None is as the file says
    dropout, token_drop: while it is trained, of a Transformer
    remat:   of smke_jax.models.layers.REMAT
    described: what the file said when the run began
    """
    said = dict(
        described
        or described_by(
            start, model, KINDS, tower="image", what="image tower", example="vit", besides=("mean", "std", "image_size")
        )
    )
    if start != RANDOM and not described and not (mean and std):
        check_pixels(start, said)
    known = KINDS[said["type"]].__dataclass_fields__
    check_keep(keep)
    check_depth(start, said.get("depth"), depth)
    chosen = {"depth": depth, "image_size": image_size}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    drops = {"dropout": dropout, "token_drop": token_drop}
    chosen |= {name: share for name, share in drops.items() if share or name in known}
    if wrong := [name for name in chosen if name not in (*known, "image_size")]:
        raise UserError(f"{wrong[0]}: an image tower of type {said['type']!r} has no such field; leave it out")
    pixels = {name: tuple(value) for name, value in {"mean": mean, "std": std}.items() if value}
    fields = {**said, **chosen, **pixels} | ({"num_classes": 0} if "num_classes" in said else {})
    size = fields.get("image_size", 224)
    if size % fields.get("patch_size", 1):
        raise UserError(f"image_size {size} is no multiple of the patch size {fields['patch_size']}: set it to one")
    module = build_teacher({**fields, "remat": remat, "dtype": dtype})
    check_pools(module, tuple(pools), tuple(layers))
    use = {"makes": makes, "image": image, "pools": tuple(pools), "layers": tuple(layers)}

    def init(key, specs):
        return module.init(key, jnp.zeros((2, size, size, 3)))["params"]

    def forward(name, specs):
        read = {"image": image if image in specs else "image"}
        return (features(module, name, trains=True, **use | read, **statistics_of(fields)),)

    def begin(shapes) -> Start | None:
        if start == RANDOM:
            return None
        return tower_start("image", start, shapes, {**fields, "image_size": size}, keep)

    return Network(
        init,
        forward,
        begin,
        trained=trained,
        sizes={image: size},
        described=said if start != RANDOM else {},
        export=lambda params, slots: (
            params,
            {**fields, **{name: list(x) for name, x in statistics_of(fields).items()}, **use},
        ),
    )
