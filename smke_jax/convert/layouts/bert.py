"""BERT: the files of transformers and those of the first releases (spec 26.5)."""

import numpy as np

from smke_jax.convert.rules import Layout, Rule, layer_norm, linear, per_layer, without_prefix
from smke_jax.convert.shapes import activation_of, depth_of, heads_of
from smke_jax.errors import UserError

OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
TABLE = "embeddings.word_embeddings.weight"
WORD_BIAS, OTHER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
WORD_HEAD = (WORD_BIAS, "cls.predictions.transform.dense.weight", "cls.predictions.transform.LayerNorm.weight")


def _clean(state) -> dict:
    state = without_prefix("bert.")(without_prefix("module.")(state))
    for old, new in OLD_NAMES.items():
        state = {name.replace(old, new): x for name, x in state.items()}
    if WORD_BIAS not in state and OTHER_BIAS in state:  # one parameter with two names
        state[WORD_BIAS] = state.pop(OTHER_BIAS)
    return state


def _has_word_head(state, config) -> bool:
    """Whether the file holds the head of masked words that is read here: with gelu, over the table of words itself."""
    own = state.get("cls.predictions.decoder.weight")
    shared = own is None or np.array_equal(own, state[TABLE])
    return set(WORD_HEAD) <= set(state) and shared and activation_of(config) == "gelu"


def _describe(state, config) -> dict:
    vocab_size, width = state[TABLE].shape
    max_positions = len(state["embeddings.position_embeddings.weight"])
    type_vocab_size = len(state["embeddings.token_type_embeddings.weight"])
    # RoBERTa has the same names and counts its positions from another number.
    looks_so = max_positions == 514 or type_vocab_size == 1
    family = config.get("model_type", "roberta, by its sizes" if looks_so else "bert")
    if family != "bert":
        raise UserError(f"it is a {family}, which is not read here: give a BERT, with its config.json beside it")
    stated_width = config.get("hidden_size", width)
    if stated_width != width:
        raise UserError(
            f"the config.json beside it is of width {stated_width}, the file of width {width}: "
            "put the two that belong together into one folder"
        )
    return {
        "type": "bert",
        "vocab_size": vocab_size,
        "width": width,
        "depth": depth_of(state, "encoder.layer.", config.get("num_hidden_layers", 0)),
        "num_heads": heads_of(width, config, "num_attention_heads"),
        "mlp_dim": len(state["encoder.layer.0.intermediate.dense.weight"]),
        "max_positions": max_positions,
        "type_vocab_size": type_vocab_size,
        "norm_eps": config.get("layer_norm_eps", 1e-12),
        "activation": activation_of(config),
        "pooler": "pooler.dense.weight" in state,
        **({"word_head": True} if _has_word_head(state, config) else {}),
    }


def _rules(description: dict) -> list[Rule]:
    layer = [
        *linear("encoder.layer.{i}.attention.self.query", "block_{i}/attention/query"),
        *linear("encoder.layer.{i}.attention.self.key", "block_{i}/attention/key"),
        *linear("encoder.layer.{i}.attention.self.value", "block_{i}/attention/value"),
        *linear("encoder.layer.{i}.attention.output.dense", "block_{i}/attention/out"),
        *layer_norm("encoder.layer.{i}.attention.output.LayerNorm", "block_{i}/norm1"),
        *linear("encoder.layer.{i}.intermediate.dense", "block_{i}/mlp/fc1"),
        *linear("encoder.layer.{i}.output.dense", "block_{i}/mlp/fc2"),
        *layer_norm("encoder.layer.{i}.output.LayerNorm", "block_{i}/norm2"),
    ]
    return [
        Rule(TABLE, "word_embedding"),
        Rule("embeddings.position_embeddings.weight", "position_embedding"),
        Rule("embeddings.token_type_embeddings.weight", "type_embedding"),
        *layer_norm("embeddings.LayerNorm", "embedding_norm"),
        *per_layer(layer, description["depth"]),
        *(linear("pooler.dense", "pooler") if description["pooler"] else ()),
        *(_word_head() if description.get("word_head") else ()),
    ]


def _word_head() -> list[Rule]:
    return [
        *linear("cls.predictions.transform.dense", "word_head/transform"),
        *layer_norm("cls.predictions.transform.LayerNorm", "word_head/norm"),
        Rule(WORD_BIAS, "word_head/bias"),
    ]


BERT = Layout(
    name="bert",
    summary="BERT of transformers, with or without pooler and pretraining heads; its tokenizer travels along",
    marks=(
        TABLE,
        "embeddings.token_type_embeddings.weight",
        "encoder.layer.0.attention.self.query.weight",
    ),
    describe=_describe,
    rules=_rules,
    clean=_clean,
    ignored={
        "embeddings.position_ids": "counts from 0 upwards",
        "cls.predictions.decoder.": "the table and the bias of words again, or those of a head that is not read here",
        "cls.": "for pretraining only",
        "classifier.": "of another task",
        "qa_outputs.": "of another task",
    },
)
