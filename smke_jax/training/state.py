"""The state of a run: everything that a step changes, and nothing else."""

import dataclasses
from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """One pytree, donated to each step.

    step:      () int32, updates done
    params:    {pass name: params, 'terms': {term name: params}}
    opt_state: optax state
    slots:     {term name: slots}, such as memory banks
    rng:       constant key; every step folds its number in
    ema:       {pass name: moving average of another pass's params}; None without such a pass
    """

    step: jax.Array
    params: Any
    opt_state: Any
    slots: Any
    rng: jax.Array
    ema: Any = None

    def without_params(self) -> dict[str, Any]:
        """{field: its part of the state} of all but `params`, as far as there is one."""
        fields = (field.name for field in dataclasses.fields(self) if field.name != "params")
        return {name: getattr(self, name) for name in fields if getattr(self, name) is not None}


def count_parameters(params: Any) -> int:
    """Number of trainable scalars."""
    return sum(x.size for x in jax.tree.leaves(params))
