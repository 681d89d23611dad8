"""What an objective is: a record of pure functions over named representations of the global batch."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Params = Any
Slots = Any  # explicit non-gradient state of one term, such as a memory bank; () when it has none
Reps = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]

INITIAL_LOG_SCALE = math.log(1 / 0.07)  # not jnp: importing must not start the devices


class Scope(NamedTuple):
    """What a term may know besides its inputs."""

    axis: str | None  # mesh axis to gather over inside shard_map; None when the arrays are the whole batch


class Term(NamedTuple):
    """One objective.  Arrays are this device's rows inside `value`, and the whole global batch inside `update`.

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
