"""Fusion encoders against PyTorch's own attention: value, and gradients by both modalities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict
from over_devices import assert_near, tensors

from smke_jax.models import attention
from smke_jax.models.attention import attention_by
from smke_jax.models.fusion import FUSIONS

B, N, L, WIDTH, HEADS, MLP, EPS = 3, 4, 5, 8, 2, 12, 1e-12
OF_IMAGE = 6  # channels
rng = np.random.default_rng(0)
IMAGE = rng.normal(size=(B, 1 + N, OF_IMAGE)).astype(np.float32)
TEXT = rng.normal(size=(B, L, WIDTH)).astype(np.float32)
MASK = (np.arange(L) < np.array([[5], [3], [1]])).astype(np.int32)
SIZES = {"width": WIDTH, "depth": 2, "num_heads": HEADS, "mlp_dim": MLP, "norm_eps": EPS, "init_std": 0.3}


def made(kind, **fields):
    module = FUSIONS[kind](**SIZES, **fields)
    params = module.init(jax.random.key(0), IMAGE, TEXT, MASK)["params"]
    # Norms and biases off their start, so that leaving one out shows.
    keys = iter(jax.random.split(jax.random.key(1), 200))
    return module, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)


class Reference:
    """The layers by torch.nn.functional, in float64."""

    def __init__(self, params):
        self.params = {k: torch.tensor(np.asarray(x, np.float64)) for k, x in flatten_dict(params, sep="/").items()}

    def linear(self, x, name):
        return x @ self.params[f"{name}/kernel"] + self.params.get(f"{name}/bias", 0.0)

    def norm(self, x, name):
        return F.layer_norm(x, (WIDTH,), self.params[f"{name}/scale"], self.params[f"{name}/bias"], EPS)

    def attention(self, x, keys, there, name):
        """`there` (B, K): which keys are tokens; None is all."""
        heads = lambda x: x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)  # noqa: E731
        q, k, v = (heads(self.linear(y, f"{name}/{n}")) for n, y in (("query", x), ("key", keys), ("value", keys)))
        where = None if there is None else torch.tensor(there)[:, None, None, :] > 0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=where).transpose(1, 2).reshape(x.shape)
        return self.linear(out, f"{name}/out")

    def mlp(self, x, name):
        return self.linear(F.gelu(self.linear(x, f"{name}/mlp/fc1")), f"{name}/mlp/fc2")

    def layer(self, x, there, image, name, pre):
        parts = [("norm1", lambda y: self.attention(y, y, there, f"{name}/attention"))]
        if image is not None:
            parts.append(("norm_cross", lambda y: self.attention(y, image, None, f"{name}/cross")))
        parts.append(("norm2", lambda y: self.mlp(y, name)))
        for norm, branch in parts:
            norm = f"{name}/{norm}"
            x = x + branch(self.norm(x, norm)) if pre else self.norm(x + branch(x), norm)
        return x

    def cross(self, image, text, pre):
        for i in range(2):
            text = self.layer(text, MASK, image, f"block_{i}", pre)
        return self.norm(text, "norm") if pre else text

    def concat(self, image, text, pre):
        cls = self.params["cls_token"].expand(B, 1, WIDTH)
        x = torch.cat([cls, self.linear(image[:, 1:], "image_projection"), text], dim=1)
        there = np.concatenate([np.ones((B, 1 + N)), MASK], axis=1)
        for i in range(2):
            x = self.layer(x, there, None, f"block_{i}", pre)
        return self.norm(x, "norm") if pre else x


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("kind", ["cross", "concat"])
def test_it_is_what_pytorch_computes(kind, order):
    module, params = made(kind, norm_order=order)
    image, text = tensors(IMAGE, TEXT)
    whole = getattr(Reference(params), kind)(image, text, order == "pre")
    weights = rng.normal(size=whole.shape)
    weights[:, -L:] *= MASK[..., None]  # what stands at padding is read by nobody
    (whole * torch.tensor(weights)).sum().backward()

    def ours(image, text):
        fused = module.apply({"params": params}, image, text, MASK)
        parts = [fused.text] if kind == "cross" else [fused.cls[:, None], fused.image, fused.text]
        x = jnp.concatenate(parts, axis=1)
        return jnp.sum(x * weights), (x, fused.cls)

    with jax.default_matmul_precision("highest"):
        (_, (x, cls)), grads = jax.value_and_grad(ours, argnums=(0, 1), has_aux=True)(IMAGE, TEXT)
    expected, there = whole.detach().numpy(), np.broadcast_to(np.abs(weights) > 0, x.shape)
    assert_near(np.asarray(x)[there], expected[there])
    assert_near(cls, expected[:, 0])
    for gradient, tensor in zip(grads, (image, text), strict=True):
        assert_near(gradient, tensor.grad.numpy(), 1e-4)
    assert np.any(grads[0][:, 0]) == (kind == "cross"), "the image's own [CLS] is left out of 'concat'"


@pytest.mark.parametrize("kind", FUSIONS)
def test_padding_changes_nothing(kind):
    module, params = made(kind)
    run = lambda text, mask: module.apply({"params": params}, IMAGE, text, mask)  # noqa: E731
    other = np.where(MASK[..., None] > 0, TEXT, 7.0).astype(np.float32)
    one, same = run(TEXT, MASK), run(other, MASK)
    assert_near(same.cls, one.cls)
    shorter = module.apply({"params": params}, IMAGE[1:2], TEXT[1:2, :3], MASK[1:2, :3])
    assert_near(shorter.cls, one.cls[1:2])


@pytest.mark.parametrize("kind", FUSIONS)
def test_rematerialised_it_is_the_same(kind):
    def gradient(remat):
        module, params = made(kind, remat=remat)
        loss = lambda p, image: jnp.sum(module.apply({"params": p}, image, TEXT, MASK).cls ** 2)  # noqa: E731
        return jax.grad(loss, argnums=(0, 1))(params, IMAGE)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient("none"), gradient("blocks")
    )


def test_attention_by_lengths_to_other_tokens(monkeypatch):
    """The form that cuDNN computes pads queries and keys apart: here they are 5 and 5, and 5 and 11."""
    monkeypatch.setattr(attention, "by_lengths", functools.partial(attention.by_lengths, implementation="xla"))
    monkeypatch.setattr(attention, "takes", lambda *_, **__: True)
    module, params = made("cross")
    long = np.concatenate([IMAGE, IMAGE, IMAGE[:, :1]], axis=1)
    plain = module.apply({"params": params}, long, TEXT, MASK)
    with attention_by("cudnn"):
        padded = module.apply({"params": params}, long, TEXT, MASK)
    assert_near(np.asarray(padded.text)[MASK > 0], np.asarray(plain.text)[MASK > 0])
