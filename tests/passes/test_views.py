"""Self-supervised training is random where its encoder is, the finished teacher never."""

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.networks import NETWORKS

SIZES = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}


def test_patches_are_left_out_in_training_only():
    rng = np.random.default_rng(0)
    batch = {name: jnp.asarray(rng.integers(0, 256, (2, 32, 32, 3)), jnp.uint8) for name in ("view1", "view2")}
    outputs = {}
    for type_, drop in (("data2vec2", 0.0), ("data2vec2", 0.5), ("beit", 0.0)):
        model = {"type": type_, **SIZES} | ({"token_drop": drop} if drop else {})
        network = NETWORKS["encoder"](model=model, projector=(8,))
        views, one = network.forward("net", batch)
        params = jax.jit(lambda init=network.init: {"net": init(jax.random.key(0), batch)})()
        run = lambda key, train, p=views: p.run(params, batch, jax.random.key(key), train)["view1/cls"]  # noqa: B023, E731
        run = jax.jit(run, static_argnums=1)
        outputs[type_, drop] = [np.asarray(run(0, False)), np.asarray(run(0, True)), np.asarray(run(1, True))]
        evaluated = one.run(params, {"image": batch["view1"]}, None, False)["encoder/cls"]
        np.testing.assert_allclose(evaluated, outputs[type_, drop][0], atol=1e-5)
    for case in (("data2vec2", 0.0), ("beit", 0.0)):
        evaluated, *trained = outputs[case]
        assert all(np.allclose(evaluated, x, atol=1e-6) for x in trained), case
    evaluated, *trained = outputs["data2vec2", 0.5]
    np.testing.assert_allclose(evaluated, outputs["data2vec2", 0.0][0], atol=1e-6)
    assert not np.allclose(trained[0], evaluated) and not np.allclose(*trained)


def test_the_encoders_dropout_acts_in_training_only():
    rng = np.random.default_rng(0)
    batch = {name: jnp.asarray(rng.integers(0, 256, (2, 32, 32, 3)), jnp.uint8) for name in ("view1", "view2")}
    network = NETWORKS["encoder"](model={"type": "data2vec2", **SIZES, "dropout": 0.3}, projector=(8,))
    views = network.forward("net", batch)[0]
    params = {"net": network.init(jax.random.key(0), batch)}
    run = lambda key, train: np.asarray(views.run(params, batch, jax.random.key(key), train)["view1/cls"])  # noqa: E731
    assert not np.allclose(run(0, True), run(1, True))
    np.testing.assert_array_equal(run(0, True), run(0, True))
    np.testing.assert_array_equal(run(0, False), run(1, False))
