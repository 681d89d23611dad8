"""How attention is computed: by plain products everywhere, or by cuDNN's fused kernels on an NVIDIA GPU.

`attention_by` makes the choice for what is traced in its block.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# cuDNN wants even lengths where there is a bias, and its backward pass has failed at odd ones without it.
MULTIPLE = 8


def by_products(q, k, v, mask=None, bias=None, keys=None) -> jax.Array:
    """softmax(q·kᵀ / √d + bias)·v with the logits and the softmax in float32.

    q (B, L, H, d); k, v (B, K, H, d), in self-attention with K = L; mask (B, K), 1 = token, 0 = padding; bias
    broadcastable to (B, H, L, K); keys is K -> (B, L, H, d) in the dtype of q.
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


def by_lengths(q, k, v, mask=None, bias=None, keys=None, *, implementation: str = "cudnn") -> jax.Array:
    """`by_products` through `jax.nn.dot_product_attention`, for masks whose tokens all stand before the padding.

    Lengths are multiples of 8 (`fitted`).  The first `keys` rows of k and v count where there is no mask.  How many
    count is passed as a number: cuDNN would make a bias of a mask.  The bias is padded, and rounded to the dtype of q.
    cuDNN takes only bfloat16 and float16, and JAX raises what it refuses; `implementation` "xla" is for tests.
    """
    tokens = None
    if mask is not None:
        tokens = jnp.maximum(jnp.sum(mask.astype(jnp.int32), axis=1), 1)
    elif keys not in (None, k.shape[1]):
        tokens = jnp.full((len(q),), keys, jnp.int32)
    if bias is not None:
        more = ((0, 0), (0, 0), (0, q.shape[1] - bias.shape[2]), (0, k.shape[1] - bias.shape[3]))
        bias = jnp.pad(bias.astype(q.dtype), more)
    return jax.nn.dot_product_attention(
        q, k, v, bias=bias, scale=float(np.sqrt(1 / q.shape[-1])),
        key_value_seq_lengths=tokens, implementation=implementation,
    )  # fmt: skip


def takes(dtype, head_dim: int, *, biased: bool, trained: bool) -> bool:
    """Whether cuDNN computes attention of `dtype` and `head_dim`; its gradient by a bias is not asked for."""
    return dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128 and not (biased and trained)


class Choice(NamedTuple):
    """What `attention_by` has chosen; `trained` says whether gradients flow."""

    name: str = "products"
    trained: bool = True


PLAIN = Choice()
CHOICES = ("auto", "products")  # of config.attention

_kept: contextvars.ContextVar[list | None] = contextvars.ContextVar("weights", default=None)
_chosen = contextvars.ContextVar("attention", default=PLAIN)


def best(name: str, device: jax.Device) -> str:
    """What `attention_by` takes, for an entry of CHOICES: 'auto' is 'cudnn' on an NVIDIA GPU from Ampere on."""
    if name != "auto":
        return name
    capable = float(getattr(device, "compute_capability", 0) or 0) >= 8
    return "cudnn" if device.platform == "gpu" and capable else "products"


@contextlib.contextmanager
def attention_by(name: str, *, trained: bool = True) -> Iterator[None]:
    """All attention that is traced in this block is computed in this way, by 'products' or by 'cudnn'.

    Where cuDNN does not take it (`takes`), products do it.
    """
    token = _chosen.set(Choice(name, trained))
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


def form(dtype, head_dim: int, *, biased: bool) -> tuple[Callable, int]:
    """(`by_products` or `by_lengths`, the number of which it wants lengths to be multiples)."""
    chosen = _chosen.get()
    if chosen.name == "cudnn" and takes(dtype, head_dim, biased=biased, trained=chosen.trained):
        return by_lengths, MULTIPLE
    return by_products, 1


def fitted(x: jax.Array, multiple: int) -> jax.Array:
    """x (B, L, D) with rows of zeros after the others, up to the next multiple."""
    more = -x.shape[1] % multiple
    return jnp.pad(x, ((0, 0), (0, more), (0, 0))) if more else x
