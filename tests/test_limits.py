"""Limits of values: who complains of what; every number of every config has one."""

import math
from pathlib import Path

import pytest

from smke_jax.config_files import load_config, shipped_configs
from smke_jax.errors import UserError
from smke_jax.limits import ABOVE_0, AT_LEAST_1, BELOW_1, LARGEST, SHARE, Entries, Range
from smke_jax.models.fields import fields_of
from smke_jax.models.text import TextEncoder
from smke_jax.training.record import flatten
from smke_jax.training.validation import CHOICES, RANGES, TUPLES, TYPED, validate


@pytest.mark.parametrize(
    "limits, inside, outside",
    [
        (SHARE, (0, 0.5, 1, True), (-0.1, 1.1, math.nan)),
        (BELOW_1, (0, 0.99), (1, math.inf)),
        (ABOVE_0, (1e-300, LARGEST), (0, -1, LARGEST + 1)),
        (AT_LEAST_1, (1, "text", None), (0, -(2**70))),
        (Range(), (-5.5,), (-math.inf, 2**70)),
    ],
)
def test_numbers(limits, inside, outside):
    for value in inside:
        limits.check("config.x", value)
    for value in outside:
        with pytest.raises(UserError, match="^config.x is ") as error:
            limits.check("config.x", value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "entries, inside, outside",
    [
        (Entries(float, 2, ABOVE_0), ((0.5, 1), [1.0, 2.0]), ((1.0,), 3, "ab", None, (0.0, 1.0), (math.nan, 1.0))),
        (Entries(int, None, AT_LEAST_1), ((), (1, 2)), ((1.5,), (True,), (0,), ("1",))),
        (Entries(str), (("a",), ()), ("a", (1,), {"a": 1})),
    ],
)
def test_tuples(entries, inside, outside):
    for value in inside:
        entries.check("config.x", value)
    for value in outside:
        with pytest.raises(UserError, match="^config.x is "):
            entries.check("config.x", value)


def test_a_module_is_not_built_of_what_a_file_says_wrongly():
    for name, value in {"norm_eps": 2**70, "width": -1, "num_heads": 0, "depth": 10**20}.items():
        with pytest.raises(UserError, match=f"^{name} is "):
            fields_of({name: value}, TextEncoder)


@pytest.mark.parametrize("path", sorted(shipped_configs().values()), ids=lambda path: path.stem)
def test_every_number_and_every_tuple_of_a_config_has_limits(path: Path):
    flat = flatten(load_config(f"{path}:smoke").copy_and_resolve_references())
    validate(flat)
    known = {*RANGES, *TUPLES, *CHOICES, *TYPED}
    own = {"lr_rules", "trained"}  # checked where they are read
    for key, value in flat.items():
        names = {key.rpartition(".")[2], ".".join(key.split(".")[-2:])}
        if isinstance(value, int | float | list) and not isinstance(value, bool):
            assert names & (known | own), f"{key} has no limits: put it into training/validation.py"


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("config.optimizer.lr_rules", [1], "give pairs of a pattern and a factor"),
        ("config.optimizer.lr_rules", [["^words/", "a"]], "give pairs"),
        ("config.optimizer.lr_rules", [["^words/", -1.0]], "give a positive number"),
        ("config.task.crop_scale", [1.0, 0.5], "give the smallest first"),
        ("config.task.crop_scale", [0.5], "give 2 numbers in parentheses"),
        ("config.task.vocab_size", -1, "at least 1"),
        ("config.task.vocab_size", 99999999999999999999, "no whole number here is above"),
        ("config.networks.words.model.norm_eps", math.nan, "finite"),
        ("config.networks.words.model.depth", 10**9, "at most 1000"),
        ("config.profile_steps", [3, "x"], "whole numbers"),
        ("config.task.data", [3], "give texts in parentheses"),
        ("config.networks.student.text", [3], "give texts in parentheses"),
    ],
)
def test_a_value_that_no_run_could_work_with_is_refused(key, value, says):
    flat = flatten(load_config(str(shipped_configs()["lit"]) + ":smoke").copy_and_resolve_references())
    with pytest.raises(UserError, match=says):
        validate(flat | {key: value})


def test_uniform_negatives_are_hardness_0():
    flat = flatten(load_config(str(shipped_configs()["itm"]) + ":smoke").copy_and_resolve_references())
    assert "config.selections.hard_negatives.hardness" in flat
    validate(flat | {"config.selections.hard_negatives.hardness": 0.0})
