"""What an objective is: a record of pure functions over named representations of the global batch."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

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

    So are slots: those that `smke_jax.parallel.rules` spreads over the devices are there in part inside `value`.

    needs:  representations it reads
    init:   (key, {name: ShapeDtypeStruct}) -> (params, slots)
    value:  (params, slots, reps, scope) -> (loss, metrics), means over this device's rows; the step averages them
            over devices
    update: (slots, reps) -> slots after the step, from representations without gradient
    """

    needs: tuple[str, ...]
    init: Callable[[jax.Array, Mapping[str, jax.ShapeDtypeStruct]], tuple[Params, Slots]]
    value: Callable[[Params, Slots, Reps, Scope], tuple[jax.Array, Metrics]]
    update: Callable[[Slots, Reps], Slots] = lambda slots, reps: slots


def equal_widths(term: str, shapes: Mapping[str, jax.ShapeDtypeStruct], prediction: str, target: str) -> None:
    """Raises UserError where `prediction` has not as many channels as the `target` that `term` compares it with."""
    have, want = (shapes[name].shape[-1] for name in (prediction, target))
    if have != want:
        raise UserError(
            f"config.terms.{term}: {prediction} has {have} channels and {target} {want}: "
            f"set config.student.head_dim={want}"
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


def no_state(key, shapes) -> tuple[Params, Slots]:
    """`init` of a term without parameters and slots."""
    return {}, ()
