"""What the model tests share: a Transformer layer written in PyTorch, and comparison with a relative error."""

import jax
import numpy as np
import torch
import torch.nn.functional as F


def randomised(params, seed: int, std: float = 0.3):
    """The same tree with every leaf random, so that no bias is 0 and no norm or LayerScale trivial."""
    rng = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [rng.normal(std, std, x.shape).astype(np.float32) for x in leaves])


def to_torch(tree):
    """Arrays -> float64 tensors that collect gradients."""
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x, np.float64), requires_grad=True), tree)


def gradients(tree):
    return jax.tree.map(lambda x: x.grad.numpy(), tree)


def quick_jit(function, **options):
    """`jax.jit` that compiles in half the time, for functions run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def norm_of(tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree))))


def assert_near(actual, expected, tolerance: float = 1e-5):
    """Relative error of every leaf in the 2-norm.

    A leaf that should be 0 (the gradient of a key bias is, exactly) is measured against 1 % of the whole tree.
    """
    whole = norm_of(expected)
    jax.tree.map(lambda a, b: None, actual, expected)  # same structure
    named = zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, a), b in named:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, (jax.tree_util.keystr(path), a.shape, b.shape)
        error = norm_of(a - b) / max(norm_of(b), 0.01 * whole)
        assert error <= tolerance, f"{jax.tree_util.keystr(path)}: relative error {error:.2e} > {tolerance}"


def linear(p, x):
    return F.linear(x, p["kernel"].T, p.get("bias"))


def layer_norm(p, x, eps):
    return F.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], eps)


def block(p, x, *, heads, order, eps, activation="gelu", mask=None, bias=None):
    """-> (out, fc1 before the activation, MLP output before residual and norm).  `p` are the Flax block's parameters.

    mask (B, L) bool, True = token; bias (1, H, L, L).
    """
    batch, length, width = x.shape

    def attend(y):
        a = p["attention"]
        q, k, v = a["query"], a["key"], a["value"]
        zero = torch.zeros(width, dtype=x.dtype)
        extra = torch.zeros(batch, heads, length, length, dtype=x.dtype)
        if bias is not None:
            extra = extra + bias
        if mask is not None:
            extra = extra.masked_fill(~mask[:, None, None, :], float("-inf"))
        y = y.transpose(0, 1)
        return F.multi_head_attention_forward(
            y, y, y, width, heads,
            torch.cat([q["kernel"].T, k["kernel"].T, v["kernel"].T]),
            torch.cat([one.get("bias", zero) for one in (q, k, v)]),
            None, None, False, 0.0, a["out"]["kernel"].T, a["out"]["bias"],
            need_weights=False, attn_mask=extra.reshape(batch * heads, length, length),
        )[0].transpose(0, 1)  # fmt: skip

    def feed_forward(y):
        hidden = linear(p["mlp"]["fc1"], y)
        act = {
            "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / 2**0.5)),
            "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
            "relu": F.relu,
        }[activation]
        return hidden, linear(p["mlp"]["fc2"], act(hidden))

    def scale(name, y):
        return y * p[name]["gamma"] if name in p else y

    if order == "pre":
        h = x + scale("ls1", attend(layer_norm(p["norm1"], x, eps)))
        hidden, y = feed_forward(layer_norm(p["norm2"], h, eps))
        return h + scale("ls2", y), hidden, y
    h = layer_norm(p["norm1"], x + scale("ls1", attend(x)), eps)
    hidden, y = feed_forward(h)
    return layer_norm(p["norm2"], h + scale("ls2", y), eps), hidden, y
