"""Rule tables read the same both ways, and every layout is measured."""

import numpy as np
import pytest
from parity import all_cases

from smke_jax.convert import rules
from smke_jax.convert.layouts import LAYOUTS
from smke_jax.convert.rules import LINEAR, QKV, Kind, Layout, Report, Rule, per_layer, to_flax, to_torch, without_prefix
from smke_jax.errors import UserError

KINDS = {name: kind for name, kind in vars(rules).items() if isinstance(kind, Kind)}
SHAPES = ((), (6,), (1, 6), (6, 4), (1, 6, 4), (6, 4, 2, 3))
TABLE = Layout(
    name="table",
    summary="one layer, for these tests",
    marks=("first.weight",),
    describe=lambda state, config: {"depth": 2},
    rules=lambda description: per_layer(
        [Rule("{i}.qkv", ("{i}/q", "{i}/k", "{i}/v"), QKV), Rule("{i}.weight", "{i}/kernel", LINEAR)],
        description["depth"],
    ),
    ignored={"head.": "of another task"},
    constants=lambda description: {"positions": np.arange(3)},
)


def any_bits(shape) -> np.ndarray:
    """Floats of every bit pattern: NaNs with payloads, infinities, -0 and denormals among them."""
    return np.random.default_rng(0).integers(2**32, size=shape, dtype=np.uint32).view(np.float32)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_an_exact_way_back(name):
    kind, fits = KINDS[name], 0
    for shape in SHAPES:
        x = any_bits(shape)
        try:
            parts = kind.to_flax(x)
        except ValueError:
            continue
        fits += 1
        assert same_bits(kind.to_torch(*parts), x)
        for part, again in zip(parts, kind.to_flax(kind.to_torch(*parts)), strict=True):
            assert same_bits(part, again)
    assert fits, "no shape here fits it: add one"


def test_rules_of_layers():
    table = TABLE.rules({"depth": 2})
    assert [rule.torch for rule in table] == ["0.qkv", "0.weight", "1.qkv", "1.weight"]
    assert table[2].paths == ("1/q", "1/k", "1/v") and table[3].kind is LINEAR


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {f"{i}.{name}": shape for i in range(2) for name, shape in (("qkv", (6,)), ("weight", (4, 2)))}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


SHAPES_OF_MODEL = {str(i): {**{x: np.zeros(2) for x in "qkv"}, "kernel": np.zeros((2, 4))} for i in range(2)}


def read(state):
    return to_flax(TABLE, state, {"depth": 2}, SHAPES_OF_MODEL)


def test_there_and_back(state):
    params, report = read(state)
    assert report.sound and set(report.mapped) == set(state)
    back = to_torch(TABLE, params, {"depth": 2})
    assert set(back) == set(state) and all(same_bits(back[name], state[name]) for name in state)
    assert all(x.flags.c_contiguous and x.flags.owndata for x in back.values())


def test_every_name_is_accounted_for(state):
    extra = {"head.weight": np.zeros(1), "positions": np.arange(3.0), "stranger": np.zeros(1)}
    report = read({name: x for name, x in state.items() if name != "1.qkv"} | extra)[1]
    assert report.missing == ["1.qkv"] and report.unexpected == ["stranger"] and not report.sound
    assert report.ignored == {"head.weight": "of another task", "positions": "computed, and checked against the file"}


@pytest.mark.parametrize("positions", [np.arange(4), np.arange(3) + 1])
def test_a_constant_of_another_value(state, positions):
    report = read(state | {"positions": positions})[1]
    assert (
        set(report.wrong) == {"positions"} and "differs from the one this model computes" in report.wrong["positions"]
    )


@pytest.mark.parametrize(
    ("name", "x", "says"),
    [
        ("0.qkv", np.zeros(7, np.float32), "shape (7,): 7 rows do not split into q, k and v"),
        ("0.qkv", np.zeros(9, np.float32), "shape (9,) gives (3,) for 0/q, which is (2,)"),
        ("0.weight", np.zeros(8, np.float32), "shape (8,): it has 1 dimensions, not 2"),
        ("0.weight", np.zeros((4, 2)), "float64, which fp32 cannot hold exactly: save the file in fp32"),
        ("0.weight", np.zeros((4, 2), np.int8), "int8 where a float is expected"),
        ("0.weight", np.zeros((4, 2), bool), "bool where a float is expected"),
        ("0.weight", np.zeros((4, 2), np.complex64), "complex64 where a float is expected"),
    ],
)
def test_a_tensor_that_does_not_fit(state, name, x, says):
    report = read(state | {name: x})[1]
    assert report.wrong == {name: says} and name not in report.mapped and not report.missing


def test_parameters_of_another_model_do_not_go_out(state):
    params, _ = read(state)
    del params["1"]["kernel"]
    with pytest.raises(UserError, match="do not fit the layout table: 1/kernel"):
        to_torch(TABLE, params, {"depth": 2})
    with pytest.raises(UserError, match="do not fit the layout table: 1/k, 1/kernel, 1/q, 1/v, 2/k, 2/q, 2/v"):
        to_torch(TABLE, {"0": params["0"], "2": params["1"]}, {"depth": 2})


def test_a_prefix():
    clean = without_prefix("module.", "model.")
    assert list(clean({"model.a": 0, "b": 0})) == ["a", "b"]
    assert list(clean({"module.model.a": 0, "model.b": 0})) == ["model.a", "model.b"]
    assert list(clean({"a": 0})) == ["a"]


def test_the_report_is_for_people():
    report = Report(
        mapped={"a.weight": ("a/kernel",), "qkv": ("q/kernel", "k/kernel")},
        ignored={"head.weight": "of another task", "head.bias": "of another task", "ids": "counts from 0"},
        missing=["b.weight"],
        unexpected=["c.weight"],
        wrong={"d.weight": "int64 where a float is expected"},
        widened=["a.weight"],
        assumed=("mean", "std"),
    )
    lines = [
        "widened     1 of them from 16-bit floats to fp32, exactly",
        "assumed     mean, std: not said, so what is usual; --mean and --std if it is not",
        "left out    1: counts from 0 (ids)",
        "left out    2: of another task (head.weight, …)",
        "missing     b.weight",
        "unexpected  c.weight",
        "wrong       d.weight: int64 where a float is expected",
    ]
    assert report.lines() == ["mapped      2 tensors", *lines] and not report.sound
    mapped = ["  a.weight -> a/kernel", "  qkv -> q/kernel, k/kernel"]
    assert report.lines(detail=True) == ["mapped      2 tensors", *mapped, *lines]


# An aligned model is several networks of other layouts: tests/convert/test_export_aligned.py compares it with its run.
@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"smke-aligned-hf"}))
def test_every_layout_is_measured_at_all_sizes(layout):
    # The networks of this family have their sizes: there is no tiny one.
    expected = {"wide", "full"} if layout == "efficientnet-lite" else {"tiny", "wide", "full"}
    assert {case.size for case in all_cases() if case.layout == layout} == expected
