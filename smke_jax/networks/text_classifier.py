"""A pretrained text encoder with BERT's pooler and a matrix for classes or a score: what is fine-tuned on GLUE."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from smke_jax.convert.params_file import fit, load_params
from smke_jax.errors import UserError
from smke_jax.facts import Described, FromTask
from smke_jax.models.fields import build_from
from smke_jax.models.text import TextClassifier, TextEncoder
from smke_jax.networks.base import Network, Start
from smke_jax.networks.description import check_depth, described_by
from smke_jax.networks.start import RANDOM, tower_start
from smke_jax.passes.classify_text import classify_text

POOLER = "pooler"


def text_classifier(
    *,
    vocab_size: FromTask,
    classes: FromTask,
    start: str,
    model: Mapping[str, Any] | None = None,
    makes: str = "class",
    depth: int | None = None,
    dropout: float = 0.0,
    head_dropout: float = 0.1,
    scratch: bool = False,
    trained: tuple[str, ...] = (),
    remat: str = "none",
    dtype: str = "float32",
    described: Described = None,
) -> Network:
    """A BERT that makes '<makes>/logits' (B, classes) of sentences or pairs: [CLS], pooler, dropout, one matrix.

    vocab_size: of the task's tokenizer
    classes: of the task; 1 for a score
    start:   what `smke convert` wrote of a BERT, or what `smke export` wrote of a run with one, such as the text tower
             of an aligned model; 'random' needs `model`, a part such as 'bert'.  The pooler comes along where the file
             has one
    model:   fields that differ from the part's defaults have to agree with the file
    depth:   how many of the first layers are kept; None is all of them
    dropout: in every layer; head_dropout: before the last matrix.  Both while it is trained
    scratch: the file says what model it is, and the weights are drawn at random: what pretraining is measured against
    trained: regexes of the parameters that are trained, such as '^(pooler|head)/'; () is all
    remat:   of smke_jax.models.layers.REMAT
    described: what the file said when the run began
    Source: spec 4.
    """
    kinds = {"bert": TextEncoder}  # segment ids, which pairs need, are BERT's
    said = dict(
        described
        or described_by(start, model, kinds, tower="text", what="text classifier", example="bert", besides=(POOLER,))
    )
    if model is not None and model.get("dropout"):
        raise UserError("model.dropout: set the dropout of the classifier itself")
    check_depth(start, said["depth"], depth)
    fields = {
        **said, "vocab_size": vocab_size, "depth": depth or said["depth"], "dropout": dropout, "remat": remat,
        "dtype": dtype,
    }  # fmt: skip
    module = TextClassifier(build_from(fields, TextEncoder), classes, head_dropout)

    def init(key, specs):
        tokens = jnp.zeros((2, 3), jnp.int32)
        return module.init(key, tokens, tokens)["params"]

    def begin(shapes) -> Start | None:
        if start == RANDOM or scratch:
            return None
        found = tower_start("text", start, shapes["encoder"], fields)
        params, origins = {"encoder": found.params}, {"encoder": found.origins[""]}
        if said.get(POOLER):
            params[POOLER] = fit(shapes[POOLER], load_params(start)[POOLER], source=f"the pooler of {start}")
            origins[POOLER] = f"the pooler of {start}"
        return found._replace(params=params, origins=origins)

    return Network(
        init,
        lambda name, specs: (classify_text(module, name, makes=makes, pairs="text_types" in specs),),
        begin,
        trained=tuple(trained) or True,
        described=said if start != RANDOM else {},
        export=lambda params, slots: ({**params["encoder"], POOLER: params[POOLER]}, {**fields, POOLER: True}),
    )
