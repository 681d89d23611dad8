"""What an objective is: a record of pure functions over named representations of the global batch."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from smke_jax.losses.collective import Scope

Params = Any
Slots = Any  # explicit non-gradient state of one term, such as a memory bank; () when it has none
Reps = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]

INITIAL_LOG_SCALE = math.log(1 / 0.07)  # not jnp: importing must not start the devices


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


def no_state(key, shapes) -> tuple[Params, Slots]:
    """`init` of a term without parameters and slots."""
    return {}, ()
