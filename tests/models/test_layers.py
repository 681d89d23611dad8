"""The Transformer layer against one written in PyTorch (float64), in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_parts import assert_near, block, gradients, quick_jit, randomised, to_torch

from smke_jax.activations import ACTIVATIONS
from smke_jax.errors import UserError
from smke_jax.models.layers import Attention, Block, LayerNorm, LayerScale

BATCH, LENGTH, WIDTH, HEADS, MLP = 3, 5, 8, 2, 12
LENGTHS = np.array([5, 3, 1])

CASES = {
    "bert": dict(norm_order="post", norm_eps=1e-12, attention_biases="qkv"),
    "data2vec2": dict(norm_order="post", norm_eps=1e-6, attention_biases="qkv"),
    "shared": dict(norm_order="pre", norm_eps=1e-6, attention_biases="qv", layer_scale=0.2),
    "pre_tanh": dict(norm_order="pre", norm_eps=1e-5, attention_biases="qkv", activation="gelu_tanh"),
    "post_scale_relu": dict(norm_order="post", norm_eps=1e-6, layer_scale=0.1, activation="relu"),
    # An epsilon as large as the variances shows whether it is ignored or added outside of the root.
    "large_eps": dict(norm_order="post", norm_eps=0.3),
}


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    bias = rng.normal(size=(1, HEADS, LENGTH, LENGTH)).astype(np.float32)
    mask = (np.arange(LENGTH) < LENGTHS[:, None]).astype(np.int32)
    cotangents = [
        rng.normal(size=(BATCH, LENGTH, width)).astype(np.float32) for width in (WIDTH, MLP, WIDTH)
    ]  # of out, fc1, mlp
    return x, mask, bias, cotangents


@pytest.mark.parametrize("case", CASES)
def test_block_equals_pytorch(case):
    """Data2Vec2, whose images need no mask, without mask and bias; all others with both."""
    options, masked = CASES[case], case != "data2vec2"
    model = Block(HEADS, MLP, **options)
    x, mask, bias, cotangents = inputs()
    extra = (mask, bias) if masked else (None, None)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    params = randomised(shapes, seed=1)

    @quick_jit
    def outputs_and_gradients(params, x):
        out, vjp = jax.vjp(lambda p, x: tuple(model.apply({"params": p}, x, *extra)), params, x)
        return out, vjp(tuple(cotangents))

    with jax.default_matmul_precision("highest"):
        out, (d_params, d_x) = outputs_and_gradients(params, x)

    reference, t_x = to_torch(params), to_torch(x)
    expected = block(
        reference,
        t_x,
        heads=HEADS,
        order=options["norm_order"],
        eps=options["norm_eps"],
        activation=options.get("activation", "gelu"),
        mask=torch.tensor(mask, dtype=torch.bool) if masked else None,
        bias=torch.tensor(bias, dtype=torch.float64) if masked else None,
    )
    sum((y * torch.tensor(c, dtype=torch.float64)).sum() for y, c in zip(expected, cotangents, strict=True)).backward()

    for name, ours, theirs in zip(("out", "fc1", "mlp"), out, expected, strict=True):
        assert_near({name: ours}, {name: theirs.detach().numpy()})
    assert_near(d_x, t_x.grad.numpy())
    assert_near(d_params, gradients(reference))


def test_block_parameters_are_those_of_the_options():
    x = jnp.zeros((1, LENGTH, WIDTH))

    def names(**options):
        shapes = jax.eval_shape(Block(HEADS, MLP, **options).init, jax.random.key(0), x)["params"]
        return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(shapes)}

    plain = names()
    assert {f"attention/{n}/bias" for n in ("query", "key", "value", "out")} < plain
    assert names(attention_biases="qv") == plain - {"attention/key/bias"}
    assert names(layer_scale=0.2) == plain | {"ls1/gamma", "ls2/gamma"}
    assert names(norm_order="pre") == plain


def test_gelu_forms():
    z = np.linspace(-4, 4, 33)
    t = torch.tensor(z)
    x = jnp.asarray(z, jnp.float32)
    exact, tanh = torch.nn.functional.gelu(t), torch.nn.functional.gelu(t, approximate="tanh")
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), exact, atol=1e-6)
    np.testing.assert_allclose(ACTIVATIONS["gelu_tanh"](x), tanh, atol=1e-6)
    assert float((exact - tanh).abs().max()) > 1e-4  # so the comparison above tells them apart
    t.requires_grad_()
    torch.nn.functional.gelu(t).sin().sum().backward()
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(ACTIVATIONS["gelu"](x))))
    np.testing.assert_allclose(slope(x), t.grad, atol=1e-6)
    half = jnp.asarray(z, jnp.bfloat16)
    assert ACTIVATIONS["gelu"](half).dtype == slope(half).dtype == jnp.bfloat16


def test_layer_scale():
    x = np.array([[1.0, -2.0, 3.0]], np.float32)
    model = LayerScale(0.2)
    variables = model.init(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["params"]["gamma"], np.full(3, 0.2, np.float32))
    gamma = np.array([2.0, 0.5, -1.0], np.float32)
    np.testing.assert_array_equal(model.apply({"params": {"gamma": gamma}}, x), [[2.0, -1.0, -3.0]])


def test_layer_norm_has_fp32_statistics():
    # Far from 0, E[x²] - E[x]² in fp32 and any statistics in bf16 would lose the variance.
    x = jnp.asarray(1000.0 + np.array([[-1.0, 0.0, 1.0, 2.0]]), jnp.float32)
    params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    expected = (np.array([-1.0, 0.0, 1.0, 2.0]) - 0.5) / np.sqrt(1.25 + 1e-6)
    out, half = jax.jit(lambda x: [LayerNorm(1e-6, d).apply({"params": params}, x) for d in (None, jnp.bfloat16)])(x)
    assert out.dtype == jnp.float32 and half.dtype == jnp.bfloat16
    np.testing.assert_allclose(out[0], expected, rtol=1e-4)
    np.testing.assert_array_equal(half, out.astype(jnp.bfloat16))  # rounded once, at the end


def test_masked_keys_do_not_matter_and_empty_rows_stay_finite():
    model = Attention(HEADS)
    x, mask, _, _ = inputs()
    params = randomised(jax.eval_shape(model.init, jax.random.key(0), x)["params"], seed=2)
    run = jax.jit(lambda x, mask: model.apply({"params": params}, x, mask))
    out = run(x, mask)
    changed_out = run(np.where(mask[:, :, None] == 1, x, np.float32(100)), mask)
    tokens = mask.astype(bool)
    np.testing.assert_allclose(np.asarray(changed_out)[tokens], np.asarray(out)[tokens], rtol=1e-5, atol=1e-5)
    assert np.all(np.isfinite(run(x, np.zeros_like(mask))))


def test_dropout_only_in_training():
    x = inputs()[0]
    model, still = Block(HEADS, MLP, dropout=0.5), Block(HEADS, MLP)
    variables = {"params": randomised(jax.eval_shape(model.init, jax.random.key(0), x)["params"], seed=3)}
    noisy_run = jax.jit(lambda key: model.apply(variables, x, deterministic=False, rngs={"dropout": key}).out)
    evaluated = jax.jit(lambda: (model.apply(variables, x).out, still.apply(variables, x).out))()
    np.testing.assert_array_equal(*evaluated)
    noisy = [noisy_run(jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.abs(noisy[0] - noisy[2]).max() > 1e-3


def test_refusals():
    x = jnp.zeros((1, LENGTH, WIDTH))
    with pytest.raises(UserError, match="width 8 does not divide into 3 heads"):
        jax.eval_shape(Attention(3).init, jax.random.key(0), x)
    with pytest.raises(UserError, match="norm_order 'middle'"):
        jax.eval_shape(Block(HEADS, MLP, norm_order="middle").init, jax.random.key(0), x)
