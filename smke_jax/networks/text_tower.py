"""A pretrained text encoder by itself: frozen, or trained further."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.facts import Described, FromTask
from smke_jax.models.fields import build_from
from smke_jax.models.text import TextEncoder
from smke_jax.networks.base import Network, Start
from smke_jax.networks.description import described_by
from smke_jax.networks.start import FITTING, RANDOM, tower_start
from smke_jax.passes.words import POOLS, words


def text_tower(
    *,
    vocab_size: FromTask,
    start: str,
    model: Mapping[str, Any] | None = None,
    makes: str = "words",
    pool: str = "mean",
    depth: int | None = None,
    dropout: float = 0.0,
    trained: bool = True,
    remat: str = "none",
    dtype: str = "float32",
    described: Described = None,
) -> Network:
    """A BERT that makes '<makes>/feature' (B, D) of captions, from what `smke convert` wrote.

    vocab_size: of the task's tokenizer
    start:   the file says what model it is; 'random' needs `model`, a part such as 'bert'
    model:   fields that differ from the part's defaults have to agree with the file
    pool:    of the last layer's outputs: 'mean' over the tokens, or 'cls'
    depth:   how many of the first layers are kept; None is all of them
    dropout: in every layer, while it is trained
    remat:   of smke_jax.models.layers.REMAT
    described: what the file said when the run began
    """
    if pool not in POOLS:
        raise UserError(f"pool {pool!r} is neither {' nor '.join(POOLS)}")
    said = dict(described or described_by(start, model, FITTING["text"], what="text tower", example="bert"))
    if model is not None and model.get("dropout"):
        raise UserError("model.dropout: set the dropout of the text tower itself")
    if depth is not None and depth > said["depth"]:
        raise UserError(f"{start} has {said['depth']} layers: set depth to {said['depth']} or less")
    fields = {**said, "vocab_size": vocab_size, "depth": depth or said["depth"], "dropout": dropout, "remat": remat}
    encoder = build_from({**fields, "dtype": dtype}, TextEncoder)

    def init(key, specs):
        tokens = jnp.zeros((2, 3), jnp.int32)
        return encoder.init(key, tokens, tokens)["params"]

    def begin(shapes) -> Start | None:
        return None if start == RANDOM else tower_start("text", start, shapes, fields)

    return Network(
        init,
        lambda name, specs: (words(encoder, name, makes=makes, pool=pool),),
        begin,
        trained=trained,
        described=said if start != RANDOM else {},
        export=lambda params, slots: (params, {**fields, "pooler": False, "makes": makes, "pool": pool}),
    )
