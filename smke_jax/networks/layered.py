"""Encoders that say what their layers make of every token: teacher and student of distilling one modality (spec 1, 2).

A student is the first layers of its teacher, trained further.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.facts import Described, FromTask
from smke_jax.models.fields import build_from
from smke_jax.models.layers import kernel_init
from smke_jax.models.towers import TEXT_TOWERS, VITS
from smke_jax.networks.base import Network, Start
from smke_jax.networks.description import described_by, of_every_patch
from smke_jax.networks.encoders import check_pixels
from smke_jax.networks.frozen import in_dtype
from smke_jax.networks.start import RANDOM, tower_start
from smke_jax.passes.base import statistics_of
from smke_jax.passes.layer_means import OUTPUTS, image_layers, text_layers

POOLER = "pooler"
ALL_BUT_POOLER = r"^(?!pooler/)"


def layered_image(
    *,
    start: str,
    model: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    depth: int | None = None,
    makes: str = "student",
    output: str = "mlp",
    layers: tuple[int, ...] = (),
    layer_norm: bool = True,
    trained: bool = True,
    dropout: float = 0.0,
    remat: str = "none",
    dtype: str = "float32",
    described: Described = None,
) -> Network:
    """A Vision Transformer that makes '<makes>/layers' (B, 1 + N, D) of images, from what `smke convert` wrote.

    start:      the file says what model it is; 'random' needs `model`, a part such as 'vit'
    model:      fields that differ from the part's defaults have to agree with the file
    image_size: what was learned for each place is interpolated where it is not that of the file; None is that of the
                file
    depth:      how many of the first layers are kept; None is all of them
    output:     of a layer: 'mlp', the output of its MLP before the residual sum, or 'stream', the sum after the layer
    layers:     those that are averaged, counted from 1; () is all.  0 of a 'stream' is what the first layer gets
    layer_norm: whether every token of the mean is normalised over its channels
    trained:    False is a teacher
    dropout:    in every layer, while it is trained
    remat:      of smke_jax.models.layers.REMAT
    described:  what the file said when the run began
    """
    said = dict(
        described
        or described_by(
            start, model, VITS, tower="image", what="layered image encoder", example="vit",
            besides=("mean", "std"),
        )
    )  # fmt: skip
    if start != RANDOM and not described:
        check_pixels(start, said)
    size = image_size or said["image_size"]
    kept = _depth(start, said["depth"], depth)
    chosen = _layers(output, layers, kept)
    # Student and teacher see the same patches.
    fields = of_every_patch(said, image_size=size, depth=kept, dropout=dropout)
    encoder = build_from({**fields, "remat": remat, "dtype": dtype}, VITS[said["type"]])

    def init(key, specs):
        return _stored(encoder.init(key, jnp.zeros((2, size, size, 3)))["params"], dtype, trained)

    def forward(name, specs):
        options = {"output": output, "layers": chosen, "layer_norm": layer_norm, "trained": trained}
        return (image_layers(encoder, name, makes=makes, **options, **statistics_of(said)),)

    return Network(
        init,
        forward,
        _begin("image", start, fields, dtype, trained),
        trained=trained,
        sizes={"image": size},
        alike={("layers of images", "output"): output, ("layers of images", "layer_norm"): layer_norm},
        described=said if start != RANDOM else {},
        export=lambda params, slots: (params, {**fields, **statistics_of(said)}),
    )


def layered_text(
    *,
    vocab_size: FromTask,
    start: str,
    model: Mapping[str, Any] | None = None,
    depth: int | None = None,
    makes: str = "student",
    output: str = "stream",
    layers: tuple[int, ...] = (),
    layer_norm: bool = False,
    padding: bool = True,
    trained: bool = True,
    dropout: float = 0.0,
    remat: str = "none",
    dtype: str = "float32",
    described: Described = None,
) -> Network:
    """A BERT, or a CLIP's text tower, that makes '<makes>/layers' (B, L, D) of texts, from what `smke convert` wrote.

    A student keeps the pooler of its file as it is: nothing here reads it, and fine-tuning the student begins with it,
    as in the thesis (spec 4).
    vocab_size: of the task's tokenizer
    padding:    whether padding counts among the positions that a channel is normalised over, as in the thesis' code;
                without it what is said of a text does not depend on how far it is padded
    The other fields are those of `layered_image`.
    """
    said = dict(
        described
        or described_by(start, model, TEXT_TOWERS, tower="text", what="layered text encoder", example="bert",
                        besides=(POOLER,))
    )  # fmt: skip
    pooled = bool(trained and said.get(POOLER))
    said_alike = {"output": output, "layer_norm": layer_norm, "padding": padding}
    kept = _depth(start, said["depth"], depth)
    chosen = _layers(output, layers, kept)
    fields = {**said, "vocab_size": vocab_size, "depth": kept, "dropout": dropout}
    encoder = build_from({**fields, "remat": remat, "dtype": dtype}, TEXT_TOWERS[said["type"]])

    def init(key, specs):
        tokens = jnp.zeros((2, 3), jnp.int32)
        params = encoder.init(key, tokens, tokens)["params"]
        if pooled:
            square = (fields["width"], fields["width"])
            params |= {POOLER: {"kernel": kernel_init(0.02)(key, square), "bias": jnp.zeros(square[:1])}}
        return _stored(params, dtype, trained)

    def forward(name, specs):
        options = {"output": output, "layers": chosen, "layer_norm": layer_norm, "trained": trained}
        return (text_layers(encoder, name, makes=makes, padding=padding, **options),)

    return Network(
        init,
        forward,
        _begin("text", start, fields, dtype, trained),
        trained=(ALL_BUT_POOLER,) if pooled else trained,
        alike={("layers of texts", field): value for field, value in said_alike.items()},
        described=said if start != RANDOM else {},
        export=lambda params, slots: (params, {**fields, POOLER: pooled}),
    )


def _depth(start: str, there: int, wanted: int | None) -> int:
    if wanted is not None and not 1 <= wanted <= there:
        raise UserError(f"{start} has {there} layers, and depth is {wanted}: set depth to 1 to {there}")
    return wanted or there


def _layers(output: str, layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    if output not in OUTPUTS:
        raise UserError(f"output {output!r} is neither {' nor '.join(OUTPUTS)}")
    first = 0 if output == "stream" else 1
    if wrong := [i for i in layers if not first <= i <= depth]:
        raise UserError(f"there is no layer {wrong[0]} with output={output!r}: give layers from {first} to {depth}")
    return tuple(layers)


def _stored(params: Any, dtype: str, trained: bool) -> Any:
    return params if trained else in_dtype(params, dtype)


def _begin(tower: str, start: str, fields: Mapping[str, Any], dtype: str, trained: bool):
    def begin(shapes) -> Start | None:
        if start == RANDOM:
            return None
        found = tower_start(tower, start, shapes, fields)
        return found._replace(params=_stored(found.params, dtype, trained))

    return begin
