"""Modules from configs and descriptions, which hold more than a module's fields."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


def fields_of(config: Any, module: type[nn.Module]) -> dict:
    """The entries of `config` that are fields of `module`; lists become the tuples that Linen hashes."""
    names = module.__dataclass_fields__
    return {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in config.items() if k in names}


def build_from(config: Any, module: type[nn.Module]) -> nn.Module:
    """`module` with its fields from `config`; its dtype is fp32 where `config` says none."""
    return module(**fields_of(config, module) | {"dtype": jnp.dtype(config.get("dtype", "float32"))})
