"""Sizes of a model, read from the names and shapes of its tensors."""

import math
import re
from collections.abc import Container, Mapping
from typing import Any

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
# Of ViT Ti, S, B and L, all with 64 channels a head; the H of MAE and Data2Vec2 has 80, and so they are asked for.
WIDTHS_OF_64 = (192, 384, 768, 1024)


def section(settings: Any, *path: str) -> Mapping:
    """The part of nested settings under `path`, {} where there is none."""
    for key in path:
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings if isinstance(settings, Mapping) else {}


def stated(config: dict, key: str) -> Any:
    """What transformers' config.json says under `key`; UserError where it does not, as where there is none.

    A file of transformers cannot be read by its tensors alone: they tell neither activation nor epsilon nor heads.
    """
    if not config.get(key):
        raise UserError(f"nothing says its {key}: put its config.json beside it")
    return config[key]


def depth_of(state: State, prefix: str, at_least: int = 0) -> int:
    """Number of layers `prefix`0, `prefix`1, …, or `at_least`, which a config states, where that is more.

    Gaps, and what is short of `at_least`, are left for the rules to report as missing.
    """
    layers = {int(m[1]) for name in state if (m := re.match(re.escape(prefix) + r"(\d+)[./]", name))}
    return max([at_least, *(layer + 1 for layer in layers)])


def heads_of(width: int, config: Mapping, *keys: str, of_64: Container[int] = ()) -> int:
    """Number of attention heads: what the user said, or `config` under the first of `keys`.

    Shapes do not tell it.  Networks `of_64` wide are known to have 64 channels a head; UserError for others.
    """
    for key in ("num_heads", *keys):
        if key in config:
            return int(config[key])
    if width not in of_64:
        raise UserError(
            "the number of attention heads is neither in the file nor in a config.json beside it: give --num_heads"
        )
    return width // 64


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
