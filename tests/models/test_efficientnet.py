"""EfficientNet-Lite and its depthwise convolutions equal PyTorch's and XLA's, gradients included."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_efficientnet import EfficientNetLite as TorchNetwork
from torch_parts import assert_near, quick_jit

from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.rules import to_torch
from smke_jax.models.depthwise import depthwise
from smke_jax.models.efficientnet import EfficientNetLite, InvertedResidual
from smke_jax.models.projected import ProjectedEncoder

TINY = {"image_size": 37, "width": 16, "width_multiplier": 0.25, "depth_multiplier": 0.3, "num_classes": 5}
# Its stages, written out: 10 is rounded to 16, because 8 would be less than nine tenths of it.
STAGES = ((1, 3, 1, 1, 8), (1, 3, 2, 6, 8), (1, 5, 2, 6, 16), (1, 3, 2, 6, 24), (1, 5, 1, 6, 32), (2, 5, 2, 6, 48),
          (1, 3, 1, 6, 80))  # fmt: skip
IMAGES = np.random.default_rng(0).normal(size=(2, 37, 37, 3)).astype(np.float32)


def random_params(model, *inputs):
    """Every leaf random, and variances positive."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]

    def draw(path, x):
        if path[-1].key == "var":
            return rng.uniform(0.5, 2, x.shape).astype(np.float32)
        fan_in = np.prod(x.shape[:-1]) if x.ndim > 1 else 10
        return rng.normal(x.ndim == 1, fan_in**-0.5, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def test_features_tokens_logits_and_gradients_equal_pytorch():
    """At 37 pixels every map has an odd size, so that both kinds of padding occur."""
    model = EfficientNetLite(**TINY)
    params = random_params(model, IMAGES)
    weights = np.random.default_rng(2).normal(size=(2, 21)).astype(np.float32)

    @quick_jit
    def run(params):
        def total(params):
            feature, sown = model.apply({"params": params}, IMAGES, mutable=["intermediates"])
            sown = sown["intermediates"]
            out = jnp.concatenate([feature, *sown["logits"]], axis=1)
            return jnp.sum(out * weights), (feature, sown)

        return jax.value_and_grad(total, has_aux=True)(params)

    with jax.default_matmul_precision("highest"):
        (_, (feature, sown)), grads = run(params)
    logits, tokens = sown["logits"][0], sown["tokens"][0]

    theirs = TorchNetwork(STAGES, width=16, classes=5).double().eval()
    layout, description = LAYOUTS["efficientnet-lite"], {"type": "efficientnet_lite", **TINY}
    state = {name: torch.tensor(x) for name, x in to_torch(layout, params, description).items()}
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    *blocks, last, pooled, classes = theirs(torch.tensor(IMAGES.transpose(0, 3, 1, 2), dtype=torch.float64))
    (torch.cat([pooled, classes], 1) * torch.tensor(weights)).sum().backward()

    assert tokens.shape == (2, model.grid**2, 16) == (2, 4, 16)
    assert_near(tokens, last.detach().numpy().transpose(0, 2, 3, 1).reshape(2, 4, 16))
    assert len([*blocks, last]) == model.depth
    for i, outputs in enumerate([*blocks, last]):
        cells = outputs.detach().numpy().transpose(0, 2, 3, 1).reshape(2, -1, outputs.shape[1])
        assert_near(sown[f"layer_{i + 1}"][0], cells)
    assert_near(feature, pooled.detach().numpy())
    assert_near(logits, classes.detach().numpy())
    ours = to_torch(layout, grads, description)
    assert_near({name: ours[name] for name, _ in theirs.named_parameters()},
                {name: x.grad.numpy() for name, x in theirs.named_parameters()})  # fmt: skip
    statistics = [name for name in ours if "running" in name]
    assert len(statistics) == 50 and not any(ours[name].any() for name in statistics), "training keeps them"


GEOMETRIES = [(9, 3, 1), (16, 5, 2), (8, 3, 2), (17, 5, 1), (7, 5, 2), (3, 5, 2), (1, 5, 1), (2, 3, 2), (10, 5, 3)]


@pytest.mark.parametrize(("size", "kernel_size", "stride"), GEOMETRIES)
def test_depthwise_is_the_grouped_convolution(size, kernel_size, stride):
    rng = np.random.default_rng(size)
    x = rng.normal(size=(2, size, size + 1, 6)).astype(np.float32)
    kernel = rng.normal(size=(kernel_size, kernel_size, 1, 6)).astype(np.float32)
    grouped = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(stride, stride), padding="SAME", feature_group_count=6,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
    )  # fmt: skip

    @quick_jit
    def run(x, kernel):
        out, back = jax.vjp(lambda x, kernel: depthwise(x, kernel, stride), x, kernel)
        expected, expected_back = jax.vjp(grouped, x, kernel)
        weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return (out, *back(weights)), (expected, *expected_back(weights))

    ours, theirs = run(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def test_depthwise_sums_in_float32_whatever_it_is_given():
    """Many equal numbers: bfloat16 sums would stop growing."""
    x = jnp.full((1, 64, 64, 1), 1.0078125, jnp.bfloat16)
    kernel = jnp.ones((3, 3, 1, 1), jnp.bfloat16)
    out, back = jax.vjp(lambda x, kernel: depthwise(x, kernel, 1), x, kernel)
    dx, dkernel = back(jnp.ones_like(out))
    assert out.dtype == dx.dtype == dkernel.dtype == jnp.bfloat16
    assert float(out[0, 5, 5, 0]) == float(jnp.bfloat16(9 * 1.0078125))
    assert float(dkernel[1, 1, 0, 0]) == float(jnp.bfloat16(64 * 64 * 1.0078125))


def test_drop_path_leaves_the_branch_out_for_whole_images():
    block = InvertedResidual(3, 1, 1, 8, drop_path=0.25)
    x = np.random.default_rng(3).normal(size=(64, 3, 3, 8)).astype(np.float32)
    params = random_params(block, x)
    whole = block.apply({"params": params}, x) - x
    branch = block.apply({"params": params}, x, deterministic=False, rngs={"dropout": jax.random.key(0)}) - x
    kept = np.abs(branch).max(axis=(1, 2, 3)) > 0
    assert 36 <= kept.sum() <= 58, "48 are expected"
    np.testing.assert_allclose(branch[kept], whole[kept] / 0.75, rtol=1e-4, atol=1e-4)


class Told(nn.Module):
    """An encoder that gives back what it is told of training."""

    drop_path: float

    def __call__(self, images, *, deterministic: bool = True):
        return jnp.full((len(images), 1), deterministic)


@pytest.mark.parametrize(("share", "told"), [(0.5, (True, False)), (0.0, (True, True))])
def test_drop_path_is_for_training(share, told):
    model = ProjectedEncoder(Told(share), ())
    params = model.init(jax.random.key(0), IMAGES)
    assert tuple(bool(model.apply(params, IMAGES, train=train)[0][0, 0]) for train in (False, True)) == told


def test_bfloat16_is_near_float32():
    x = np.random.default_rng(5).normal(size=(2, 9, 9, 8)).astype(np.float32)
    exact, rounded = (InvertedResidual(5, 2, 6, 16, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    params = random_params(exact, x)
    exact, rounded = (np.asarray(quick_jit(m.apply)({"params": params}, x), np.float32) for m in (exact, rounded))
    assert 0 < np.abs(exact - rounded).max() < 0.03 * np.abs(exact).max()
    # What is stored in bfloat16, as a frozen network's kernels are, gives the same numbers.
    stored = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim > 1 else x, params)
    again = quick_jit(InvertedResidual(5, 2, 6, 16, dtype=jnp.bfloat16).apply)({"params": stored}, x)
    np.testing.assert_array_equal(np.asarray(again, np.float32), rounded)
    network = EfficientNetLite(**TINY, dtype=jnp.bfloat16)
    assert jax.eval_shape(network.init_with_output, jax.random.key(0), IMAGES)[0].dtype == jnp.float32


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"takes \(37, 37, 3\)"):
        jax.eval_shape(EfficientNetLite(**TINY).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
