"""How attention is computed: by plain products everywhere, or by cuDNN's fused kernels on an NVIDIA GPU.

`ATTENTION` has the choices, and `attention_by` makes one for what is traced in its block.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

# cuDNN wants even lengths where there is a bias, and its backward pass has failed at odd ones without it.
MULTIPLE = 8


def by_products(q, k, v, mask=None, bias=None) -> jax.Array:
    """softmax(q·kᵀ / √d + bias)·v with the logits and the softmax in float32.

    q (B, L, H, d); k, v (B, K, H, d), in self-attention with K = L; mask (B, K), 1 = token, 0 = padding; bias
    broadcastable to (B, H, L, K) -> (B, L, H, d) in the dtype of q.
    """
    # Heads stand before positions, so that the batched products need no transposed copies.  On a CPU such copies cost
    # as much time as the products.
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    logits = jnp.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits += bias.astype(jnp.float32)
    if mask is not None:
        # A finite minimum, not -inf: the softmax of a row without any token would be NaN.
        logits = jnp.where(mask[:, None, None, :].astype(bool), logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits).astype(q.dtype)
    if (kept := _kept.get()) is not None:
        kept.append(weights)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v).transpose(0, 2, 1, 3)


def by_lengths(q, k, v, mask=None, bias=None, *, implementation: str = "cudnn") -> jax.Array:
    """`by_products` through `jax.nn.dot_product_attention`, for masks whose tokens all stand before the padding.

    Lengths are padded to a multiple of 8.  How many of the keys are tokens is passed as a number: cuDNN would make a
    bias of a mask.  The bias is rounded to the dtype of q.  cuDNN takes only bfloat16 and float16, and JAX raises what
    it refuses; `implementation` "xla" is for tests.
    """
    batch, length = q.shape[:2]
    more, more_keys = -length % MULTIPLE, -k.shape[1] % MULTIPLE
    tokens = None
    if mask is not None:
        tokens = jnp.maximum(jnp.sum(mask.astype(jnp.int32), axis=1), 1)
    elif more_keys:
        tokens = jnp.full((batch,), k.shape[1], jnp.int32)
    if more or more_keys:
        q = jnp.pad(q, ((0, 0), (0, more), (0, 0), (0, 0)))
        k, v = (jnp.pad(x, ((0, 0), (0, more_keys), (0, 0), (0, 0))) for x in (k, v))
        bias = bias if bias is None else jnp.pad(bias, ((0, 0), (0, 0), (0, more), (0, more_keys)))
    out = jax.nn.dot_product_attention(
        q, k, v, bias=bias if bias is None else bias.astype(q.dtype), scale=float(np.sqrt(1 / q.shape[-1])),
        key_value_seq_lengths=tokens, implementation=implementation,
    )  # fmt: skip
    return out[:, :length]


ATTENTION: dict[str, Callable] = {"products": by_products, "cudnn": by_lengths}

_kept: contextvars.ContextVar[list | None] = contextvars.ContextVar("weights", default=None)
_chosen = contextvars.ContextVar("attention", default="products")


@contextlib.contextmanager
def attention_by(name: str) -> Iterator[None]:
    """All attention that is traced in this block is computed by that entry of ATTENTION."""
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextlib.contextmanager
def kept_weights() -> Iterator[list[jax.Array]]:
    """A list of the weights (B, H, L, L) of all attention that is traced in this block, in its order.

    The layers must not be rematerialised: what is traced inside of that cannot leave it.
    """
    kept: list[jax.Array] = []
    token = _kept.set(kept)
    try:
        with attention_by("products"):
            yield kept
    finally:
        _kept.reset(token)


def attend(q, k, v, mask=None, bias=None) -> jax.Array:
    """`by_products`, or the other entry of ATTENTION that `attention_by` has chosen."""
    return ATTENTION[_chosen.get()](q, k, v, mask, bias)
