"""What a pass is: per-example work that turns arrays of a batch into named representations."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from smke_jax.descriptions import MEAN, STD

Arrays = Mapping[str, jax.Array]


class Pass(NamedTuple):
    """A forward of one or several networks over the rows of a batch.

    No row sees another, so that a pass may be cut into micro-batches and rematerialised.

    name:     names the operations in a profile, and the random numbers of the pass
    networks: the networks whose parameters `run` finds under their names
    needs:    arrays that it reads: of the batch, or made by other passes.  'text/tokens@hard_text' are the rows of
              'text/tokens' that the array 'hard_text', made by a selection, names
    provides: representations that it makes, one row per row of what it reads
    run:      (parameters by network, arrays, key, train) -> representations
    watched:  those of them that are watched for collapse
    reads:    {'slots/<term>': shapes} of slots that `run` finds among the parameters under this name
    """

    name: str
    networks: tuple[str, ...]
    needs: tuple[str, ...]
    provides: tuple[str, ...]
    run: Callable[[Mapping[str, Any], Arrays, jax.Array, bool], dict[str, jax.Array]]
    watched: tuple[str, ...] = ()
    reads: Mapping[str, Any] = {}


def narrowed(p: Pass, names: Iterable[str]) -> Pass:
    """`p` without the representations that are not among `names`, so that XLA removes their computation."""
    names = frozenset(names)

    def run(params, arrays, key, train):
        return {name: x for name, x in p.run(params, arrays, key, train).items() if name in names}

    return p._replace(provides=tuple(name for name in p.provides if name in names), run=run)


def apply_with_tokens(model: nn.Module, params, *inputs, **options) -> tuple[Any, dict[str, jax.Array]]:
    """`model.apply` -> (its output, {name: array} of what its outermost module sows, such as its tokens)."""
    out, sown = model.apply({"params": params}, *inputs, mutable=["intermediates"], **options)
    return out, {name: x[0] for name, x in sown.get("intermediates", {}).items() if not isinstance(x, Mapping)}


def mode(key: jax.Array | None, train: bool) -> dict[str, Any]:
    """The options of a module that drops out some of its numbers, by the random `key`, while it is trained."""
    return {"deterministic": not train, "rngs": {"dropout": key} if train else None}


def statistics_of(description: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """{'mean': (3,), 'std': (3,)} of the pixels that the model of `description` takes; ImageNet's if it has none."""
    return {"mean": tuple(description.get("mean", MEAN)), "std": tuple(description.get("std", STD))}


def to_network(images: jax.Array, mean=MEAN, std=STD) -> jax.Array:
    """uint8 pixels -> normalised fp32, on the device: a batch travels at a quarter of the bytes.  (B, S, S, 3)."""
    return (images.astype(jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)
