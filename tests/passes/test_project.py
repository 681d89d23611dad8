"""Projections of features: the same numbers in NumPy, mixed rows, and gradients that reach both rows of a mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smke_jax.errors import UserError
from smke_jax.networks.projections import projections
from smke_jax.parts import part

rng = np.random.default_rng(0)
BATCH = {
    "photo/feature": rng.normal(size=(4, 5)).astype(np.float32),
    "scene/feature": rng.normal(size=(4, 3)).astype(np.float32),
    "words/feature": rng.normal(size=(4, 6)).astype(np.float32),
}
IMAGE = ("photo/feature", "scene/feature")
ORDER = np.array([2, 0, 3, 1])
MIXED = {**BATCH, **{f"{name}@mixup": x[ORDER] for name, x in BATCH.items()}}


def test_a_mixture_needs_an_alpha():
    with pytest.raises(UserError, match="mixup_alpha is 0.0: it has to be above 0"):
        built(mixup_alpha=0.0)


def built(**fields):
    """(network, its passes by name, random parameters of which none is zero)"""
    network = projections(image=IMAGE, text=("words/feature",), width=7, **fields)
    specs = {name: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype) for name, x in BATCH.items()}
    params = network.init(jax.random.key(0), specs)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    params = jax.tree.map(lambda x: 0.5 * jax.random.normal(next(keys), x.shape), params)
    return network, {p.name: p for p in network.forward("student", {})}, params


def run(p, params, arrays, key=None, train=False):
    return p.run({"student": params}, {need: jnp.asarray(arrays[need]) for need in p.needs}, key, train)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def dense(x, own):
    return x @ np.asarray(own["kernel"]) + np.asarray(own["bias"])


def layer_norm(x, own, eps):
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps)
    return x * np.asarray(own["scale"]) + np.asarray(own["bias"])


def test_features_stand_side_by_side_and_are_projected():
    _, passes, params = built(hidden=8, head=2, dropout=0.4)
    x = np.concatenate([BATCH[name] for name in IMAGE], axis=1)
    own = params["image"]
    expected = dense(x, own["linear"])
    expected = expected + dense(gelu(dense(layer_norm(expected, own["norm"], 1e-6), own["fc1"])), own["fc2"])
    found = run(passes["student/image"], params, BATCH)
    np.testing.assert_allclose(found["image/out"], expected, atol=1e-5)
    head = dense(layer_norm(expected, params["head_norm"], 1e-6), params["head_linear"])
    np.testing.assert_allclose(found["image/head"], head, atol=1e-5)
    assert set(found) == {"image/out", "image/head"}


def test_without_a_hidden_layer_it_is_linear():
    _, passes, params = built()
    found = run(passes["student/text"], params, BATCH)["text/out"]
    np.testing.assert_allclose(found, dense(BATCH["words/feature"], params["text"]["linear"]), atol=1e-6)


def test_a_shared_layer_comes_after_both():
    _, passes, params = built(shared=part("mlp", mlp_dim=9))
    found = {**run(passes["student/image"], params, BATCH), **run(passes["student/text"], params, BATCH)}
    x = dense(BATCH["words/feature"], params["text"]["linear"])
    np.testing.assert_allclose(found["text/fc1"], dense(x, params["shared"]["fc1"]), atol=1e-5)
    assert found["image/fc1"].shape == (4, 9) and found["image/out"].shape == (4, 7)


def test_both_sides_are_mixed_in_the_same_share():
    _, passes, params = built(mixup_alpha=0.7)
    found = run(passes["student/mixed"], params, MIXED, jax.random.key(3), train=True)
    alone = {**run(passes["student/image"], params, BATCH), **run(passes["student/text"], params, BATCH)}
    shares = []
    for side in ("image", "text"):  # linear projections keep a mixture: its share is the same in every channel
        own, other = np.asarray(alone[f"{side}/out"]), np.asarray(alone[f"{side}/out"])[ORDER]
        share = (np.asarray(found[f"mixed_{side}/out"]) - other) / (own - other)
        np.testing.assert_allclose(share, np.broadcast_to(np.median(share, 1, keepdims=True), share.shape), atol=1e-3)
        shares.append(np.median(share, axis=1))
    np.testing.assert_allclose(*shares, atol=1e-3)
    assert len(np.unique(shares[0].round(3))) == 4 and (shares[0] > 0).all() and (shares[0] < 1).all()


def test_shares_are_those_of_a_beta_distribution():
    _, passes, params = built(mixup_alpha=0.3)
    many = {name: np.repeat(x[:1], 4000, 0) for name, x in BATCH.items()}
    many |= {f"{name}@mixup": np.zeros_like(x) for name, x in many.items()}
    found = run(passes["student/mixed"], params, many, jax.random.key(5), train=True)["mixed_text/out"]
    x, bias = BATCH["words/feature"][:1], np.asarray(params["text"]["linear"]["bias"])
    shares = (np.asarray(found) - bias)[:, 0] / (dense(x, params["text"]["linear"]) - bias)[0, 0]
    assert abs(shares.mean() - 0.5) < 0.03 and abs(shares.var() - 1 / (4 * 1.6)) < 0.01  # 1 / (4 (2 alpha + 1))


def test_the_gradient_reaches_both_rows():
    _, passes, params = built()

    def loss(arrays):
        return run(passes["student/mixed"], params, arrays, jax.random.key(0), True)["mixed_text/out"].sum()

    gradient = jax.grad(loss)({name: jnp.asarray(x) for name, x in MIXED.items()})
    assert float(jnp.abs(gradient["words/feature"]).min()) > 0
    assert float(jnp.abs(gradient["words/feature@mixup"]).min()) > 0


def test_dropout_acts_in_training_alone():
    _, passes, params = built(dropout=0.5)
    one, two = (run(passes["student/image"], params, BATCH, jax.random.key(i), True)["image/out"] for i in (0, 1))
    assert not np.allclose(one, two)
    still = [run(passes["student/image"], params, BATCH, jax.random.key(i), False)["image/out"] for i in (0, 1)]
    np.testing.assert_array_equal(*still)


def test_a_feature_that_nothing_makes_is_named():
    network = projections(image=("photo/feature",))
    with pytest.raises(UserError, match="nothing makes words/feature: name a network in config.networks that does"):
        network.init(jax.random.key(0), {"photo/feature": jax.ShapeDtypeStruct((2, 5), np.float32)})
