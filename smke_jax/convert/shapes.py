"""Sizes of a model, read from the names and shapes of its tensors."""

import math
import re

from smke_jax.convert.rules import State
from smke_jax.errors import UserError

# transformers' names of the activations -> ours
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


def depth_of(state: State, prefix: str) -> int:
    """Number of layers `prefix`0, `prefix`1, …; gaps are left for the rules to report as missing."""
    layers = {int(m[1]) for name in state if (m := re.match(re.escape(prefix) + r"(\d+)[./]", name))}
    return max(layers) + 1 if layers else 0


def heads_of(width: int, config: dict, *keys: str, usual: int = 64) -> int:
    """Number of attention heads: what the user said, or `config` under the first of `keys`, else `width` / `usual`.

    Shapes do not tell it.  `usual` 0 is for families with no usual width of a head: UserError then.
    """
    for key in ("num_heads", *keys):
        if key in config:
            return int(config[key])
    if not usual or width % usual:
        raise UserError(
            "the number of attention heads is neither in the file nor in a config.json beside it: give --num_heads"
        )
    return width // usual


def grid_of(positions: int) -> int:
    """Side of the square patch grid that has 1 + side² positions, the first being the class token's."""
    side = math.isqrt(positions - 1)
    if side * side != positions - 1:
        raise UserError(f"its {positions} positions are no class token and a square of patches")
    return side


def activation_of(config: dict, usual: str = "gelu") -> str:
    """Activation of the MLPs: what `config`, of transformers, says, else `usual`.

    Raises UserError for one that is not known here.
    """
    activation = config.get("hidden_act", usual)
    if activation not in ACTIVATIONS:
        raise UserError(f"the config.json beside it has hidden_act {activation!r}: known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]
