"""What a pass is: per-example work that turns a batch into named representations."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Batch = Mapping[str, jax.Array]

# ImageNet statistics: the student, BEiT v2 and ResNet-50-A1 all use these (spec 0.5).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Average(NamedTuple):
    """A moving average of parameters: decay · average + (1 - decay) · parameters in every step."""

    of: str  # name of the trained pass that they belong to
    decay: float


class Pass(NamedTuple):
    """A forward of one network over the batch; it may be cut into micro-batches, as no example sees another.

    name:     its key in `TrainState.params`; in `TrainState.ema` where it has an `average`; else in the step's `frozen`
    provides: representations it makes from a full batch
    grad:     whether its parameters are trained
    init:     (key, batch) -> params
    run:      (params, batch, key, train) -> representations; makes those whose inputs the batch has
    watched:  those of them that are watched for collapse
    average:  of which parameters it runs with, where they are neither trained nor frozen
    needs:    representations of passes before it that `run` finds in its batch
    reads:    terms whose slots `run` finds in its params, under their names; `init` makes stand-ins for them
    """

    name: str
    provides: tuple[str, ...]
    grad: bool
    init: Callable[[jax.Array, Batch], Any]
    run: Callable[[Any, Batch, jax.Array, bool], dict[str, jax.Array]]
    watched: tuple[str, ...] = ()
    average: Average | None = None
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


def only(p: Pass, names: Iterable[str]) -> Pass:
    """`p` making those of `names` that it can: what nobody reads is compiled away, also within micro-batches."""
    names = frozenset(names)

    def run(params, batch, key, train):
        return {name: x for name, x in p.run(params, batch, key, train).items() if name in names}

    return p._replace(provides=tuple(name for name in p.provides if name in names), run=run)


def apply_and_reveal(model: nn.Module, params, *inputs, **options) -> tuple[Any, dict[str, jax.Array]]:
    """`model.apply` -> (its output, {name: array} of what its outermost module sows, such as its tokens)."""
    out, sown = model.apply({"params": params}, *inputs, mutable=["intermediates"], **options)
    of_others = lambda x: isinstance(x, Mapping)  # noqa: E731
    return out, {name: x[0] for name, x in sown.get("intermediates", {}).items() if not of_others(x)}


def to_network(images: jax.Array, mean=MEAN, std=STD) -> jax.Array:
    """uint8 pixels -> normalised fp32, on the device: a batch travels at a quarter of the bytes.  (B, S, S, 3)."""
    return (images.astype(jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)
