"""The lines of a comparison: runs, or the seeds of one run put together, and where their configs differ."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from smke_jax.studies.runs import Run

# Not named as differences: they have columns of their own, or say the same in another way.
OWN_COLUMN = {f"config.{key}" for key in ("batch_size", "num_devices", "total_steps", "epochs")}
SEED = "config.seed"
RECIPE = ("config.terms", "config.networks")  # named first


class Row(NamedTuple):
    """A line of the table: one run, or finished runs that differ in nothing but their seed."""

    name: str
    runs: tuple[Run, ...]
    different: dict[str, Any]  # the fields and parts of the config in which the runs of the table differ

    def mean(self, value: Callable[[Run], float | None]) -> float | None:
        """Of what the runs have of `value`."""
        values = [x for run in self.runs if (x := value(run)) is not None]
        return float(np.mean(values)) if values else None

    def span(self, direction: str, key: str) -> tuple[float, float] | None:
        """Around the mean recall: the lowest and highest of several seeds, or the 95 % interval of one run."""
        if len(self.runs) == 1:
            return self.runs[0].interval(direction, key)
        values = [x for run in self.runs if (x := run.recall(direction, key)) is not None]
        return (min(values), max(values)) if values else None


def make_rows(runs: Sequence[Run]) -> list[Row]:
    """The runs in their order; those that differ in their seed alone are put together."""
    parts = _other_parts(runs)
    configs = {run.path: _without_parts(run.config, parts) for run in runs}
    keys = sorted({key for config in configs.values() for key in config}, key=lambda key: (_place(key), key))
    differ = lambda key: len({_json(config.get(key)) for config in configs.values()}) > 1  # noqa: E731
    varied = [key for key in keys if key not in OWN_COLUMN and differ(key)]
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in run.config.items() if key not in (SEED, "config.num_devices")}
        alike = _json([rest, run.identity, run.devices, run.device])
        groups.setdefault(alike if run.is_finished else run.path, []).append(run)
    return [
        _row(tuple(group), {key: _said(configs[group[0].path], key) for key in varied}) for group in groups.values()
    ]


def _said(config: Mapping[str, Any], key: str) -> Any:
    """The value of a field.  A term without a final weight keeps the weight that it begins with."""
    value, first = config.get(key), key.removesuffix("final_weight") + "weight"
    return config.get(first) if value is None and key.endswith(".final_weight") else value


def _place(key: str) -> int:
    return next((place for place, section in enumerate(RECIPE) if key.startswith(section)), len(RECIPE))


def _other_parts(runs: Sequence[Run]) -> list[str]:
    """The parts of the configs that are not of the same type in all runs, or that some do not have."""
    parts = {key.removesuffix(".type") for run in runs for key in run.config if key.endswith(".type")}
    return [part for part in parts if len({run.config.get(f"{part}.type") for run in runs}) > 1]


def _without_parts(config: Mapping[str, Any], parts: Iterable[str]) -> dict[str, Any]:
    """`config` with the type alone of each of `parts`: the fields of one part do not compare with those of another."""
    fields = dict(config)
    for part in parts:
        fields = {key: value for key, value in fields.items() if not key.startswith(f"{part}.")}
        if f"{part}.type" in config and not any(part.startswith(f"{outer}.") for outer in parts):
            fields[part] = config[f"{part}.type"]
    return fields


def _row(runs: tuple[Run, ...], different: dict[str, Any]) -> Row:
    if len(runs) == 1:
        return Row(runs[0].name, runs, different)
    different = {**different, SEED: [run.config[SEED] for run in runs]}
    without_seed = {re.sub(r"[,_-]?seed[=_-]?\d+", "", run.name) for run in runs}
    (name,) = without_seed if len(without_seed) == 1 else ("",)
    return Row(name or ", ".join(run.name for run in runs), runs, different)


def _json(value) -> str:
    return json.dumps(value, sort_keys=True)
