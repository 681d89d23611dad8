"""Linen modules from configs and from the descriptions in files, which hold more than one module's fields."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from smke_jax.errors import UserError, nearest
from smke_jax.limits import AT_LEAST_0, AT_LEAST_1, BELOW_1, LAYERS, Entries, Range

# Of modules without a default of their own: those of a ViT-B.
SIZES = {"image_size": 224, "patch_size": 16, "width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072}

# {field of a module: its limits}, whether a config or a file says it
RANGES = {
    **dict.fromkeys(("image_size", "patch_size", "vocab_size", "max_positions", "type_vocab_size"), AT_LEAST_1),
    **dict.fromkeys(("num_heads", "mlp_dim", "stem_width", "num_codes", "code_dim", "head", "levels"), AT_LEAST_1),
    **dict.fromkeys(
        ("layer_scale", "init_std", "num_classes", "token_type_scale", "width", "dead_below", "stand_in_classes"),
        AT_LEAST_0,
    ),
    "word_width": AT_LEAST_0,
    **dict.fromkeys(("token_drop", "dropout", "drop_path"), BELOW_1),
    "depth": Range(0, 1000),
    "norm_eps": Range(0, 1, open_below=True),
    "stand_in_temperature": Range(1e-3),
}
TUPLES = {
    "depths": Entries(int, None, LAYERS),
    "layers": Entries(int, None, AT_LEAST_0),  # 0 are the embeddings, where a network reads them
    "projector": Entries(int, None, AT_LEAST_1),
}


def defaults_of(module: type[nn.Module]) -> dict[str, Any]:
    """{field: its default in a config} of a module; `dataclasses.MISSING` where it has none."""
    return {
        field.name: SIZES.get(field.name, field.default) if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(module)
    }


def fields_of(config: Any, module: type[nn.Module]) -> dict:
    """{name: value} of the entries of `config` that are fields of `module`.

    Lists become tuples, because Linen hashes its fields.  Names of dtypes become dtypes.
    """
    names = module.__dataclass_fields__
    return {name: _field(name, value) for name, value in config.items() if name in names}


def check_fields(what: str, fields: Mapping[str, Any], modules: Mapping[str, type[nn.Module]], besides=()) -> None:
    """Raises UserError unless `fields` describes one of `modules` ({type: module}) and holds no field that it lacks.

    what: the name of the description in messages; besides: further names that the description may hold
    """
    kind = fields.get("type", "")
    if kind not in modules:
        raise UserError(f"{what}.type: there is no {kind!r} here{nearest(str(kind), list(modules))}; "
                        f"it is one of {', '.join(sorted(modules))}")  # fmt: skip
    known = {*modules[kind].__dataclass_fields__, *besides, "type"}
    for name in fields:
        if name not in known:
            raise UserError(f"{what}.{name}: {kind} has no such field{nearest(name, list(known))}")


def build_from(config: Any, module: type[nn.Module]) -> nn.Module:
    """`module` with its fields from `config`."""
    return module(**fields_of(config, module))


def _field(name: str, value: Any) -> Any:
    if name in RANGES:
        RANGES[name].check(name, value)
    if name in TUPLES and value is not None:
        TUPLES[name].check(name, value)
    if name.endswith("dtype"):
        try:
            return jnp.dtype(value)
        except TypeError:
            raise UserError(f"{name} is {value!r}: give the name of a type, such as bfloat16") from None
    return tuple(value) if isinstance(value, (list, tuple)) else value
