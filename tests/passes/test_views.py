"""Self-supervised training sees a random share of the patches, the finished teacher all of them."""

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.models.teachers import build_teacher
from smke_jax.passes.views import ProjectedEncoder, views_pass

SIZES = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}


def test_patches_are_left_out_in_training_only():
    rng = np.random.default_rng(0)
    batch = {name: jnp.asarray(rng.integers(0, 256, (2, 32, 32, 3)), jnp.uint8) for name in ("view1", "view2")}
    outputs = {}
    for type_, drop in (("data2vec2", 0.0), ("data2vec2", 0.5), ("beit", 0.0)):
        p = views_pass(ProjectedEncoder(build_teacher({"type": type_, **SIZES, "token_drop": drop}), (8,)))
        params = p.init(jax.random.key(0), batch)
        run = lambda key, train, p=p, params=params: p.run(params, batch, jax.random.key(key), train)["view1/cls"]  # noqa: E731
        outputs[type_, drop] = [np.asarray(run(0, False)), np.asarray(run(0, True)), np.asarray(run(1, True))]
    for case in (("data2vec2", 0.0), ("beit", 0.0)):
        evaluated, *trained = outputs[case]
        assert all(np.array_equal(evaluated, x) for x in trained), case
    evaluated, *trained = outputs["data2vec2", 0.5]
    np.testing.assert_array_equal(evaluated, outputs["data2vec2", 0.0][0])
    assert not np.allclose(trained[0], evaluated) and not np.allclose(*trained)
