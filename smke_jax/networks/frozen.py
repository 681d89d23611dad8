"""A frozen image teacher, from the file that says what it is, or of random weights to try code without one."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from smke_jax.convert.params_file import digests, fit
from smke_jax.errors import UserError
from smke_jax.facts import Described
from smke_jax.limits import ABOVE_0_TO_1
from smke_jax.models.teachers import TEACHERS, build_teacher, stand_in_head
from smke_jax.networks.base import Network, Start
from smke_jax.networks.description import check_depth, described_by
from smke_jax.networks.encoders import check_pixels, load_encoder
from smke_jax.networks.start import RANDOM
from smke_jax.passes.base import statistics_of
from smke_jax.passes.features import check_pools, features

CLASSIFIERS = ("fc/kernel", "head/kernel")  # matrices of a teacher's classifier, which computes in fp32
ROLE = "teacher_image"  # the array that it reads, where the student's view is another


def frozen(
    *,
    start: str,
    model: Mapping[str, Any] | None = None,
    final_norm: bool | None = None,
    depth: int | None = None,
    makes: str = "target",
    image: str = ROLE,
    pools: tuple[str, ...] = ("cls",),
    layers: tuple[int, ...] = (),
    close_up: float = 1.0,
    dtype: str = "float32",
    stand_in_classes: int = 0,
    stand_in_temperature: float = 0.1,
    described: Described = None,
) -> Network:
    """The image encoder in the file `start`, which says what model it is; of a CLIP its image tower.

    model:       what it is where `start` is 'random', a part such as 'beit'.  Otherwise the file says it, and fields
                 that differ from the part's defaults have to agree with the file
    final_norm:  of a BEiT: False takes the last block's output without the last norm; None is as the file has it
    depth:       how many of the first layers are kept; None is all of them
    makes:       what its representations are called: '<makes>/cls', '<makes>/feature', …
    image:       the array of the task that it reads, a view of its own size; 'image' where the task makes no other view
    pools:       what a feature is made of: 'cls', 'mean' or both
    layers:      the layers, counted from 1, that a feature is made of; () is the encoder's output
    close_up:    the share of the sides that a close-up has: the middle of the image, mirrored.  Below 1, a feature is
                 the mean of that of the image and that of its close-up, and takes twice the time
    dtype:       of matrix products and of the stored matrices
    stand_in_classes: logits for a teacher without a classifier, to try recipes that learn a classifier's: the cosines
                 of its [CLS] with so many fixed random directions, over `stand_in_temperature`
    described:   what the file said when the run began: a run is evaluated where the file is not
    """
    ABOVE_0_TO_1.check("close_up", close_up)
    said = dict(
        described
        or described_by(
            start, model, TEACHERS, tower="image", what="teacher", example="beit",
            besides=("mean", "std", "image_size"), remark=", such as `smke export` writes of a self-supervised run",
        )
    )  # fmt: skip
    if start != RANDOM and not described:
        check_pixels(start, said)
    description = dict(said)
    if final_norm is not None:
        if "final_norm" not in TEACHERS[description["type"]].__dataclass_fields__:
            raise UserError(f"final_norm: {description['type']} has no such field; leave it out")
        description["final_norm"] = final_norm
    elif description.get("final_norm") is False and start != RANDOM:
        raise UserError(f"{start} has no norm after its last layer: set final_norm=False")
    if depth is not None:
        if "depth" not in TEACHERS[description["type"]].__dataclass_fields__:
            raise UserError(f"depth: {description['type']} has no such field; leave it out")
        if start != RANDOM:
            check_depth(start, description["depth"], depth)
        description["depth"] = depth
    module = build_teacher({**description, "dtype": dtype})
    if stand_in_classes and getattr(module, "num_classes", 0):
        raise UserError(f"{start} has a classifier of its own: set stand_in_classes=0")
    check_pools(module, tuple(pools), tuple(layers))
    chosen = {"pools": tuple(pools), "layers": tuple(layers), "close_up": close_up}
    head = stand_in_head(stand_in_classes, stand_in_temperature) if stand_in_classes else None
    size = description.get("image_size", 224)

    def init(key, specs):
        return in_dtype(module.init(key, jnp.zeros((2, size, size, 3)))["params"], dtype)

    def begin(shapes) -> Start | None:
        if start == RANDOM:
            return None
        params = in_dtype(fit(shapes, load_encoder(start, "image"), source=start), dtype)
        form = {"form": f"final_norm={module.final_norm}"} if hasattr(module, "final_norm") else {}
        return Start(params, {"": start}, digests(start) | form)

    def forward(name, specs):
        read = image if image in specs else "image"
        return (features(module, name, makes=makes, image=read, head=head, **chosen, **statistics_of(description)),)

    return Network(
        init, forward, begin, trained=False, sizes={image: size}, described=said if start != RANDOM else {},
        export=lambda params, slots: (params, {**description, "makes": makes, "image": image, **chosen}),
    )  # fmt: skip


def in_dtype(params: Any, dtype: str) -> Any:
    """`params` with the matrices that are only ever used in `dtype` stored in it: the same results, half the memory."""

    def cast(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.asarray(x, dtype) if name.endswith("kernel") and name not in CLASSIFIERS else x

    return jax.tree_util.tree_map_with_path(cast, params)
