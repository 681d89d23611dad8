"""What an objective is: a record of pure functions over named representations of the global batch."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.losses.collective import Scope

Params = Any
Slots = Any  # explicit non-gradient state of one term, such as a memory bank; () when it has none
Reps = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]

INITIAL_LOG_SCALE = math.log(1 / 0.07)  # not jnp: importing must not start the devices
OTHER = {"image": "text", "text": "image"}  # modality


class Term(NamedTuple):
    """One objective.  Arrays are this device's rows inside `value`, and the whole global batch inside `update`.

    needs:  representations that it reads; 'text/out@hard_text' are the rows of 'text/out' that a selection chose
    init:   (key, {name: ShapeDtypeStruct}) -> (params, slots)
    value:  (params, slots, reps, scope) -> (loss, metrics), means over this device's rows; the step averages them
            over devices
    update: (slots, reps) -> slots after the step, from representations without gradient
    spread: names of slots ('features', 'ids') whose rows are spread over the devices: `value` sees this device's rows
            of them, and all of them where the rows do not divide
    """

    needs: tuple[str, ...]
    init: Callable[[jax.Array, Mapping[str, jax.ShapeDtypeStruct]], tuple[Params, Slots]]
    value: Callable[[Params, Slots, Reps, Scope], tuple[jax.Array, Metrics]]
    update: Callable[[Slots, Reps], Slots] = lambda slots, reps: slots
    spread: tuple[str, ...] = ()


def equal_widths(
    term: str, shapes: Mapping[str, jax.ShapeDtypeStruct], prediction: str, target: str,
    remedy: str = "set the student's head={}",
) -> None:  # fmt: skip
    """Raises UserError where `prediction` has not as many channels as the `target` that `term` compares it with.

    remedy: what helps, in messages, with a place for the channels of the target
    """
    have, want = (shapes[name].shape[-1] for name in (prediction, target))
    if have != want:
        raise UserError(
            f"config.terms.{term}: {prediction} has {have} channels and {target} {want}: {remedy.format(want)}"
        )


def both_heads(term: str, target: str, loss: Callable[[jax.Array, jax.Array], jax.Array]) -> Term:
    """½ loss('image/head', `target`) + ½ loss('text/head', `target`), of as many channels each, as the term `term`."""

    def init(key, shapes):
        equal_widths(term, shapes, "image/head", target)
        return no_state(key, shapes)

    def value(params, slots, reps, scope):
        image, text = (loss(reps[f"{side}/head"], reps[target]) for side in OTHER)
        return (image + text) / 2, {"loss_image": image, "loss_text": text}

    return Term(("image/head", "text/head", target), init, value)


def initial_scales(levels: tuple[str, ...]) -> Params:
    """{'logit_scale': {level: the logarithm of its inverse temperature}}, at CLIP's start."""
    return {"logit_scale": {level: jnp.full((), INITIAL_LOG_SCALE, jnp.float32) for level in levels}}


def scale_from(temperature: float, level: str) -> Params:
    """{'logit_scale': {level: the logarithm of the inverse of `temperature`}}: a scale that is learned from there."""
    return {"logit_scale": {level: jnp.full((), -math.log(temperature), jnp.float32)}}


def scale_of(params: Params, temperature: float, level: str) -> jax.Array:
    """The inverse temperature that is learned of `level`, or 1 / `temperature` of a term that learns none."""
    return jnp.exp(params["logit_scale"][level]) if "logit_scale" in params else jnp.float32(1 / temperature)


def no_state(key, shapes) -> tuple[Params, Slots]:
    """`init` of a term without parameters and slots."""
    return {}, ()
