"""The state of a run: everything that a step changes, and nothing else."""

import dataclasses
from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """One pytree, donated to each step.

    step:      () int32, updates done
    params:    {network: its trained parameters, 'terms': {term: parameters}}
    opt_state: optax state
    slots:     {term: slots}, such as memory banks
    rng:       constant key; every step folds its number in
    averages:  {network: the moving average of the trained parameters of another}
    """

    step: jax.Array
    params: Any
    opt_state: Any
    slots: Any
    rng: jax.Array
    averages: Any

    def without_params(self) -> dict[str, Any]:
        """{field: its part of the state} of all but `params`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "params"}


def count_parameters(params: Any) -> int:
    """Number of scalars."""
    return sum(x.size for x in jax.tree.leaves(params))
