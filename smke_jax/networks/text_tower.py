"""A pretrained text encoder by itself: frozen, or trained further."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.facts import Described, FromTask
from smke_jax.limits import Range
from smke_jax.models.fields import build_from
from smke_jax.models.towers import TEXT_TOWERS
from smke_jax.networks.base import Network, Start
from smke_jax.networks.description import check_depth, described_by
from smke_jax.networks.inherit import check_keep
from smke_jax.networks.start import RANDOM, tower_start
from smke_jax.passes.words import POOLS, words


def text_tower(
    *,
    vocab_size: FromTask,
    start: str,
    model: Mapping[str, Any] | None = None,
    makes: str = "words",
    pool: str = "mean",
    depth: int | None = None,
    keep: str = "first",
    word_width: int | None = None,
    dropout: float = 0.0,
    trained: bool = True,
    frozen_layers: int = 0,
    remat: str = "none",
    dtype: str = "float32",
    described: Described = None,
) -> Network:
    """A BERT, or a CLIP's text tower, that makes '<makes>/feature' (B, D) of captions, from what `smke convert` wrote.

    vocab_size: of the task's tokenizer
    start:   the file says what model it is; 'random' needs `model`, a part such as 'bert'
    model:   fields that differ from the part's defaults have to agree with the file
    pool:    of the last layer's outputs: 'mean' over the tokens, or 'cls', which in a CLIP is the end of text; its
             'mean' leaves out the start of text, which has seen nothing, and takes the end of text twice
    depth:   how many layers are kept; None is all of them
    keep:    which ones: first | even | last
    word_width: channels of the table of words of a BERT; a matrix takes its rows to the width of the layers.  Both
             begin as the best approximation of the table in the file.  None is as the file has it
    dropout: in every layer, while it is trained
    frozen_layers: so many of the first layers stay as they are, and the embeddings with them; 0 trains all
    remat:   of smke_jax.models.layers.REMAT
    described: what the file said when the run began
    """
    if pool not in POOLS:
        raise UserError(f"pool {pool!r} is neither {' nor '.join(POOLS)}")
    said = dict(
        described
        or described_by(start, model, TEXT_TOWERS, tower="text", what="text tower", example="bert", besides=("pooler",))
    )
    if model is not None and model.get("dropout"):
        raise UserError("model.dropout: set the dropout of the text tower itself")
    check_keep(keep)
    check_depth(start, said["depth"], depth)
    layers = depth or said["depth"]
    if not 0 <= frozen_layers < layers:
        raise UserError(
            f"frozen_layers is {frozen_layers} of {layers} layers: give 0 to {layers - 1}, or trained=False"
        )
    if frozen_layers and not trained:
        raise UserError("trained=False freezes all layers: leave frozen_layers out")
    fields = {**said, "vocab_size": vocab_size, "depth": layers, "dropout": dropout, "remat": remat}
    if word_width is not None:
        if "word_width" not in TEXT_TOWERS[said["type"]].__dataclass_fields__:
            raise UserError(f"word_width: a text tower of type {said['type']!r} has no such field; leave it out")
        Range(1, said["width"], closed=False).check("word_width", word_width)
        fields["word_width"] = word_width
    encoder = build_from({**fields, "dtype": dtype}, TEXT_TOWERS[said["type"]])

    def init(key, specs):
        tokens = jnp.zeros((2, 3), jnp.int32)
        return encoder.init(key, tokens, tokens)["params"]

    def begin(shapes) -> Start | None:
        return None if start == RANDOM else tower_start("text", start, shapes, fields, keep)

    return Network(
        init,
        lambda name, specs: (words(encoder, name, makes=makes, pool=pool),),
        begin,
        trained=(_all_but(frozen_layers),) if frozen_layers else trained,
        described=said if start != RANDOM else {},
        export=lambda params, slots: (params, {**fields, "pooler": False, "makes": makes, "pool": pool}),
    )


def _all_but(layers: int) -> str:
    """A regex of the parameters behind the embeddings and the first `layers` layers."""
    return rf"^(?!\w*embedding|block_({'|'.join(map(str, range(layers)))})/)"
