"""The classifier of sentences is transformers' own in value and gradient, and begins with every file of a BERT."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from smke_jax.__main__ import main
from smke_jax.convert.params_file import PARAMS, load_params, read_description, save_params
from smke_jax.errors import UserError
from smke_jax.networks.text_classifier import text_classifier
from smke_jax.objectives.classify import classify
from smke_jax.objectives.score import score

SIZES = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 10,
}  # fmt: skip
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, 30, (4, 9)).astype(np.int32)
MASK = (np.arange(9) < np.array([9, 7, 5, 3])[:, None]).astype(np.int32)
TYPES = MASK * (np.arange(9) >= np.array([5, 3, 2, 9])[:, None])
PAIRS = {"text": IDS, "text_mask": MASK, "text_types": TYPES}


@pytest.fixture(scope="module")
def theirs():
    config = BertConfig(**SIZES, num_labels=3, attn_implementation="eager", pad_token_id=None)
    network = BertForSequenceClassification(config).eval()
    torch.manual_seed(0)
    for x in network.parameters():
        torch.nn.init.normal_(x, float(x.ndim == 1), 0.25)
    return network


@pytest.fixture(scope="module")
def weights(theirs, tmp_path_factory):
    """What `smke convert` makes of the encoder and the pooler."""
    folder = tmp_path_factory.mktemp("bert")
    theirs.bert.save_pretrained(folder / "theirs")
    assert main(["convert", f"--checkpoint={folder / 'theirs'}", f"--out={folder / 'ours'}"]) == 0
    return folder / "ours"


def begun(start, **fields):
    """(network, the parameters that it begins with)."""
    network = text_classifier(vocab_size=30, start=str(start), **{"classes": 3} | fields)
    params = network.init(jax.random.key(0), {})
    return network, {**params, **network.start(jax.eval_shape(lambda: params)).params}


def logits(network, params, arrays, key=None):
    (own,) = network.forward("words", arrays)
    assert set(own.needs) == set(arrays)
    return own.run({"words": params}, arrays, key, key is not None)["class/logits"]


def same_head(params, theirs):
    weight, bias = (x.detach().numpy() for x in (theirs.classifier.weight, theirs.classifier.bias))
    return {**params, "head": {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}}


def test_pairs_are_classified_as_by_transformers_in_value_and_gradient(theirs, weights):
    network, params = begun(weights)
    params = same_head(params, theirs)
    labels = np.array([2, 0, 1, 1])

    def loss(params):
        reps = {"class/logits": logits(network, params, PAIRS), "label": jnp.asarray(labels)}
        return classify().value({}, (), reps, None)[0], reps["class/logits"]

    (value, ours), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    theirs.zero_grad()
    ids, mask, types = (torch.tensor(x) for x in (IDS, MASK, TYPES))
    out = theirs(ids, mask, types, labels=torch.tensor(labels))
    out.loss.backward()
    np.testing.assert_allclose(ours, out.logits.detach().numpy(), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(value, out.loss.item(), rtol=1e-5)
    embeddings, last = theirs.bert.embeddings, theirs.bert.encoder.layer[1]
    for mine, other in (
        (gradient["encoder"]["type_embedding"], embeddings.token_type_embeddings.weight.grad),
        (gradient["encoder"]["word_embedding"], embeddings.word_embeddings.weight.grad),
        (gradient["encoder"]["block_1"]["mlp"]["fc1"]["kernel"], last.intermediate.dense.weight.grad.T),
        (gradient["pooler"]["kernel"], theirs.bert.pooler.dense.weight.grad.T),
        (gradient["head"]["kernel"], theirs.classifier.weight.grad.T),
    ):  # fmt: skip
        np.testing.assert_allclose(mine, other.numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(gradient["encoder"]["type_embedding"][1]).max() > 1e-3


def test_a_single_sentence_has_type_0(theirs, weights):
    network, params = begun(weights)
    single = {"text": IDS, "text_mask": MASK}
    with torch.no_grad():
        want = theirs(torch.tensor(IDS), torch.tensor(MASK)).logits.numpy()
    np.testing.assert_allclose(logits(network, same_head(params, theirs), single), want, rtol=2e-5, atol=2e-5)


def test_a_new_head_is_drawn_as_by_pytorch_and_a_pooler_comes_along(theirs, weights):
    network, params = begun(weights)
    np.testing.assert_array_equal(params["pooler"]["kernel"], theirs.bert.pooler.dense.weight.detach().numpy().T)
    wide = text_classifier(vocab_size=3, classes=2000, start="random", model={
        "type": "bert", "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 4, "max_positions": 4})  # fmt: skip
    head = wide.init(jax.random.key(0), {})["head"]
    bound = torch.nn.Linear(16, 2000).weight.detach().abs().max().item()  # 1/4
    for x in head.values():
        assert np.abs(x).max() == pytest.approx(bound, rel=1e-2) and np.std(x) == pytest.approx(
            bound / 3**0.5, rel=0.05
        )


def test_dropout_before_the_head_is_on_in_training_alone(weights):
    network, params = begun(weights, head_dropout=0.5)
    still = logits(network, params, PAIRS)
    np.testing.assert_array_equal(still, logits(network, params, PAIRS))
    assert np.abs(logits(network, params, PAIRS, jax.random.key(1)) - still).max() > 1e-3
    calm, _ = begun(weights, head_dropout=0.0)
    np.testing.assert_allclose(logits(calm, params, PAIRS, jax.random.key(1)), still, rtol=1e-6)


def test_the_text_tower_of_an_export_is_a_start(weights, tmp_path):
    """Of an aligned model and of a student; neither has a pooler."""
    encoder = {name: x for name, x in load_params(weights).items() if name != "pooler"}
    said = read_description(weights)["model"]
    image = {"type": "vit", "image_size": 8}
    fields = {name: x for name, x in said.items() if name not in ("vocab_size", "pooler")}
    files = {
        "aligned": ({"tower": encoder, "eyes": {"x": np.zeros(1)}}, {"type": "aligned", "networks": {
            "tower": {**said, "pooler": False, "makes": "words", "pool": "mean"}, "eyes": image}}),
        "student": ({"text_encoder": encoder, "image_encoder": {"x": np.zeros(1)}},
                    {"type": "student", "vocab_size": 30, "text": fields, "image": image}),
    }  # fmt: skip
    for name, (params, model) in files.items():
        (tmp_path / name).mkdir()
        save_params(tmp_path / name / PARAMS, params, {"model": model})
        network, begins = begun(tmp_path / name, depth=1)
        assert set(begins["encoder"]) == set(encoder) - {"block_1"} and json.dumps(network.described)
        np.testing.assert_array_equal(begins["encoder"]["word_embedding"], encoder["word_embedding"])
        assert np.std(begins["pooler"]["kernel"]) == pytest.approx(0.02, rel=0.2)
    model = {"type": "aligned", "networks": {"eyes": image}}
    save_params(tmp_path / "aligned" / PARAMS, {"eyes": {"x": np.zeros(1)}}, {"model": model})
    with pytest.raises(UserError, match=r"has 0 text towers \(none\): give the file of one of them"):
        begun(tmp_path / "aligned")


def test_what_it_exports_it_begins_with_again(weights, tmp_path):
    network, params = begun(weights)
    saved, description = network.export(params, {})
    save_params(tmp_path / PARAMS, saved, {"model": description})
    _, again = begun(tmp_path)
    for name in ("encoder", "pooler"):
        jax.tree.map(np.testing.assert_array_equal, again[name], params[name])


def test_from_scratch_only_the_sizes_are_those_of_the_file(weights):
    network = text_classifier(vocab_size=30, classes=3, start=str(weights), scratch=True)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), {}))
    assert network.start(shapes) is None and shapes["encoder"]["word_embedding"].shape == (30, 16)


def test_fields_that_do_not_fit_are_refused(weights):
    with pytest.raises(UserError, match="has 2 layers: set depth to 2 or less"):
        begun(weights, depth=3)
    with pytest.raises(UserError, match="model.dropout: set the dropout of the classifier itself"):
        begun("random", model={"type": "bert", "dropout": 0.1})
    with pytest.raises(UserError, match="there is no 'clip_text' here; it is one of bert"):
        begun("random", model={"type": "clip_text"})


def test_a_score_is_the_mean_of_squares(theirs):
    rng = np.random.default_rng(1)
    prediction, label = rng.normal(size=(6, 1)).astype(np.float32), rng.uniform(0, 5, 6).astype(np.float32)
    term = score()
    value, gradient = jax.value_and_grad(
        lambda x: term.value({}, (), {"class/logits": x, "label": jnp.asarray(label)}, None)[0]
    )(prediction)
    x = torch.tensor(prediction, requires_grad=True)
    loss = torch.nn.functional.mse_loss(x.squeeze(), torch.tensor(label))
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-5)
    shapes = {"class/logits": jax.ShapeDtypeStruct((4, 2), jnp.float32), "label": jax.ShapeDtypeStruct((4,), jnp.int32)}
    with pytest.raises(
        UserError, match="class/logits has 2 numbers for a label of int32: it is for tasks of one score"
    ):
        term.init(jax.random.key(0), shapes)
