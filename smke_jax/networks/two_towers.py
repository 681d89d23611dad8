"""The student: an image tower and a text tower that meet in shared layers (spec 0.2, 5-9)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from smke_jax.convert.params_file import params_path
from smke_jax.errors import UserError
from smke_jax.facts import Described, FromTask
from smke_jax.models.fields import check_fields
from smke_jax.models.shared import SHARED
from smke_jax.models.student import build_student
from smke_jax.networks.base import Network, Start
from smke_jax.networks.encoders import check_pixels, describe_encoder
from smke_jax.networks.start import FITTING, RANDOM, student_start, together, tower_start
from smke_jax.passes.base import statistics_of
from smke_jax.passes.encode import encode_image, encode_text, image_attention

TOWERS = ("image", "text")


def two_towers(
    *,
    vocab_size: FromTask,
    image: Mapping[str, Any],
    text: Mapping[str, Any],
    shared: Mapping[str, Any],
    width: int | None = None,
    head: int = 768,
    token_types: bool = True,
    token_types_at: str = "after",
    token_type_scale: float | None = 1e-5,
    dtype: str = "float32",
    residual_dtype: str = "float32",
    remat: str = "none",
    start: str = RANDOM,
    image_start: str = RANDOM,
    text_start: str = RANDOM,
    trained: tuple[str, ...] = (),
    frozen: bool = False,
    makes: str = "",
    described: Described = None,
) -> Network:
    """A student of the parts `image`, `text` and `shared`, such as 'data2vec2', 'bert' and 'transformer'.

    The image tower is one of smke_jax.models.towers.IMAGE_TOWERS, the text tower one of TEXT_TOWERS.  Pixels are
    normalised with the mean and deviation of the file that the image tower starts from, ImageNet's at a random start.
    vocab_size:   of the task's tokenizer
    width:        of the shared layers; a tower of another width gets a linear layer to it.  None is that of both towers
    head:         channels of the head: those of the teacher's feature, or its classes where its logits are learned
    token_types:  every token is told its modality by a vector added to it, 'before' the towers' first block or 'after'
                  their last (`token_types_at`), times a learned scale that starts at `token_type_scale`; None: no scale
    dtype:        of matrix products: float32, or bfloat16 on accelerators; `residual_dtype` that of the residual stream
    remat:        of smke_jax.models.layers.REMAT: what the backward pass computes again to save memory
    start:        the whole student from what `smke export` wrote of another run; temperatures come along
    image_start, text_start: one tower from what `smke convert` or `smke export` wrote of an encoder: its first `depth`
                  blocks, at the tower's `image_size`
    trained:      regexes of the parameters that are trained; () is all of them
    frozen:       nothing is trained: a teacher of both modalities, from what `smke export` wrote of another run
    makes:        'teacher' makes 'teacher_image/…' of 'teacher_image', and 'teacher_text/…', beside a student's
    described:    the statistics of pixels that the file said when the run began
    """
    parts = {"image": image, "text": text, "shared": shared}
    for name, kinds in (FITTING | {"shared": SHARED}).items():
        check_fields(name, parts[name], kinds)
    check_image(image)
    said = pixels_said(start, image_start) if described is None else dict(described)
    settings = {
        "width": width, "token_types": token_types, "token_types_at": token_types_at,
        "token_type_scale": token_type_scale, "dtype": dtype, "residual_dtype": residual_dtype,
        **{name: dict(part) for name, part in parts.items()},
    }  # fmt: skip
    model, shown = (
        build_student(settings | {"remat": kind}, vocab_size=vocab_size, target_dim=head) for kind in (remat, "none")
    )
    description = {"type": "student", "vocab_size": vocab_size, "target_dim": head, **settings, **statistics_of(said)}
    files = {tower: path for tower, path in zip(TOWERS, (image_start, text_start), strict=True) if path != RANDOM}
    if start != RANDOM and files:
        raise UserError(f"start begins the whole student: set {next(iter(files))}_start={RANDOM} beside it")

    if frozen and trained:
        raise UserError("frozen=True trains nothing: leave trained out")
    array = f"{makes}_image" if makes else "image"

    def init(key, specs):
        images = jnp.zeros((2, image["image_size"], image["image_size"], 3))
        tokens = jnp.zeros((2, 3), jnp.int32)
        return model.init(key, images, tokens, tokens)["params"]

    def forward(name, specs):
        read = array if array in specs else "image"
        passes = (
            encode_image(model, name, makes=makes, image=read, **statistics_of(said)),
            encode_text(model, name, makes=makes),
        )
        return passes if makes else (*passes, image_attention(shown, name, **statistics_of(said)))

    def begin(shapes) -> Start | None:
        if start != RANDOM:
            return student_start(start, shapes, description)
        found = {
            f"{tower}_encoder": tower_start(tower, path, shapes[f"{tower}_encoder"], parts[tower])
            for tower, path in files.items()
        }
        return together(found) if found else None

    return Network(
        init=init,
        forward=forward,
        start=begin,
        trained=False if frozen else tuple(trained) or True,
        sizes={array: image["image_size"]},
        export=lambda params, slots: (params, description),
        described=said,
    )


def check_image(image: Mapping[str, Any]) -> None:
    """Raises UserError for fields of an image tower that do not go together."""
    if image["image_size"] % image.get("patch_size", 1):
        raise UserError(
            f"image.image_size {image['image_size']} is no multiple of image.patch_size {image['patch_size']}: set it "
            "to one"
        )
    if image.get("num_classes"):
        raise UserError("image.num_classes: a tower has no classifier, leave it out")


def pixels_said(start: str, image_start: str) -> dict[str, Any]:
    """{'mean', 'std'} in the file of the student `start` or of the encoder `image_start`; {} of random weights.

    A file that is not there says nothing: a config is planned without its files, and a run without them does not begin.
    """
    path, found = start if start != RANDOM else image_start, {}
    if params_path(path).is_file():
        found = describe_encoder(path, "image")
        if found.get("type") in FITTING["image"]:
            check_pixels(path, found)
    return {name: list(found[name]) for name in ("mean", "std") if name in found}
