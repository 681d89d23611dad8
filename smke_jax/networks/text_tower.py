"""A pretrained text encoder by itself: frozen, or trained further."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from smke_jax.convert.params_file import read_description
from smke_jax.errors import UserError
from smke_jax.facts import Described, FromTask
from smke_jax.models.fields import build_from, check_fields
from smke_jax.models.text import TextEncoder
from smke_jax.networks.base import Network, Start
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
    pool:    of the last layer's outputs: 'mean' over the tokens, or 'cls'
    depth:   how many of the first layers are kept; None is all of them
    dropout: in every layer, while it is trained
    remat:   of smke_jax.models.layers.REMAT
    described: what the file said when the run began
    """
    if pool not in POOLS:
        raise UserError(f"pool {pool!r} is neither {' nor '.join(POOLS)}")
    said = dict(described or _described(start, model))
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
    )


def _described(start: str, model: Mapping[str, Any] | None) -> dict:
    if start == RANDOM:
        if model is None:
            raise UserError("a text tower of random weights needs a model, such as model=part('bert')")
        check_fields("model", model, FITTING["text"])
        return dict(model)
    if not start:
        raise UserError("the text tower's start is empty: give what `smke convert` wrote, or 'random'")
    found = read_description(start).get("model", {})
    if found.get("type") not in FITTING["text"]:
        raise UserError(
            f"{start} holds a model of type {found.get('type')!r}, which is no text encoder: give a file of one of "
            f"{', '.join(FITTING['text'])}"
        )
    return dict(found)
