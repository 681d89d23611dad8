"""A frozen teacher's matrices are kept in its compute type, which changes no result."""

import jax
import jax.numpy as jnp
import numpy as np

from smke_jax.models.beit import Beit
from smke_jax.networks.frozen import in_dtype


def test_matrices_alone_are_cast_and_features_and_logits_stay():
    model = Beit(32, 16, 24, 1, 3, 40, num_classes=7, dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(1), (3, 32, 32, 3))
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), params)
    half = in_dtype(params, "bfloat16")
    assert half["block_0"]["mlp"]["fc1"]["kernel"].dtype == half["patch_embed"]["kernel"].dtype == jnp.bfloat16
    kept = {half["relative_bias"]["table"].dtype, half["head"]["kernel"].dtype, half["cls_token"].dtype}
    assert kept == {np.dtype(np.float32)}
    run = jax.jit(lambda params: model.apply({"params": params}, images, mutable=["intermediates"]))
    jax.tree.map(np.testing.assert_array_equal, run(half), run(params))
    jax.tree.map(np.testing.assert_array_equal, in_dtype(params, "float32"), params)
