"""Linen modules from configs and from the descriptions in files, which hold more than one module's fields."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


def fields_of(config: Any, module: type[nn.Module]) -> dict:
    """{name: value} of the entries of `config` that are fields of `module`.

    Lists become tuples, because Linen hashes its fields.  Names of dtypes become dtypes.
    """
    names = module.__dataclass_fields__
    return {name: _field(name, value) for name, value in config.items() if name in names}


def build_from(config: Any, module: type[nn.Module]) -> nn.Module:
    """`module` with its fields from `config`."""
    return module(**fields_of(config, module))


def _field(name: str, value: Any) -> Any:
    if name.endswith("dtype"):
        return jnp.dtype(value)
    return tuple(value) if isinstance(value, (list, tuple)) else value
