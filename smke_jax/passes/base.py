"""What a pass is: per-example work that turns a batch into named representations."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
    average:  of which parameters it runs with, where they are neither trained nor frozen
    """

    name: str
    provides: tuple[str, ...]
    grad: bool
    init: Callable[[jax.Array, Batch], Any]
    run: Callable[[Any, Batch, jax.Array, bool], dict[str, jax.Array]]
    average: Average | None = None


def to_network(images: jax.Array, mean=MEAN, std=STD) -> jax.Array:
    """uint8 pixels -> normalised fp32, on the device: a batch travels at a quarter of the bytes.  (B, S, S, 3)."""
    return (images.astype(jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)
