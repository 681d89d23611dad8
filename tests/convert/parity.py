"""What every layout is held to: hidden states equal to PyTorch's, and the way back bit for bit.

python tests/convert/parity.py          measures every case, at tiny and full size, and writes the table into
                                        smke_jax/convert/README.md
"""

import importlib
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from smke_jax.convert.convert import convert
from smke_jax.convert.rules import to_torch
from smke_jax.convert.source import Source
from smke_jax.models.build import build_model
from smke_jax.models.layers import Block

TOLERANCE = 1e-5
README = Path(__file__).parents[2] / "smke_jax" / "convert" / "README.md"
START, END = "<!-- parity table: python tests/convert/parity.py -->", "<!-- end of the parity table -->"


class Reference(NamedTuple):
    """One random network as PyTorch has it.

    state:   {name: array}, as a file of this layout holds it, with everything that is left out on reading
    config:  what a config.json beside the file says
    inputs:  what our model is called with: NHWC images, or ids and mask
    outputs: what PyTorch made of the same: every hidden state from the first block's output on, the result, and the
             logits of a classifier
    """

    state: dict[str, np.ndarray]
    config: dict
    inputs: tuple[np.ndarray, ...]
    outputs: Sequence[np.ndarray]


class Case(NamedTuple):
    """A layout at one size.  `make` builds the PyTorch network; `run` (model, params, *inputs) -> our outputs."""

    layout: str
    size: str  # tiny | full
    against: str  # what computed the reference
    make: Callable[[], Reference]
    run: Callable[..., Sequence[Any]] | None = None  # None: `block_outputs`


class Measured(NamedTuple):
    """delta: largest |difference| relative to the largest |value| of that output; keys: tensors mapped."""

    delta: float
    keys: int
    same_after_export: bool


def block_outputs(model, params, *inputs) -> list[np.ndarray]:
    """The output of every Block in order, what the model returns (its first part, where it is a tuple), its logits."""
    capture = lambda module, name: isinstance(module, Block)  # noqa: E731
    result, extra = model.apply({"params": params}, *inputs, capture_intermediates=capture, mutable=["intermediates"])
    blocks = extra["intermediates"]
    names = sorted((n for n in blocks if n.startswith("block_")), key=lambda n: int(n.rpartition("_")[2]))
    result = result[0] if isinstance(result, tuple) else result
    return [*(blocks[n]["__call__"][0].out for n in names), result, *blocks.get("logits", ())]


def measure(case: Case) -> Measured:
    """Converts the case's file, compares every output with PyTorch's, and exports it again."""
    reference = case.make()
    source = Source(Path(f"{case.layout}.safetensors"), reference.state, reference.config, "")
    for layout in ("auto", case.layout):
        conversion = convert(source, layout)
        assert conversion.layout.name == case.layout, f"taken for {conversion.layout.name}"
    assert conversion.report.sound, conversion.report.lines()
    model = build_model(conversion.description)
    run = jax.jit(lambda params, *inputs: (case.run or block_outputs)(model, params, *inputs))
    with jax.default_matmul_precision("highest"):
        ours = run(conversion.params, *reference.inputs)
    assert len(ours) == len(reference.outputs), f"{len(ours)} outputs, PyTorch has {len(reference.outputs)}"
    delta = max(_delta(a, b) for a, b in zip(ours, reference.outputs, strict=True))
    back = to_torch(conversion.layout, conversion.params, conversion.description)
    mapped = conversion.report.mapped
    cleaned = conversion.layout.clean(reference.state)
    same = set(back) == set(mapped) and all(back[n].tobytes() == np.float32(cleaned[n]).tobytes() for n in back)
    return Measured(delta, len(mapped), same)


def _delta(ours, reference) -> float:
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    assert np.isfinite(ours).all()
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def check(case: Case) -> None:
    """What the tests assert of every case."""
    measured = measure(case)
    assert measured.delta <= TOLERANCE, measured
    assert measured.same_after_export


def all_cases() -> list[Case]:
    """The CASES of every test module beside this one."""
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent), str(here.parent / "models")]
    modules = [importlib.import_module(path.stem) for path in sorted(here.glob("test_*.py"))]
    return [case for module in modules for case in getattr(module, "CASES", ())]


def write_table(cases: Sequence[Case]) -> None:
    """Measures `cases` and puts their table between the marks in the README."""
    rows = ["| layout | size | against | tensors | max relative Δ | back again |", "|---|---|---|---|---|---|"]
    for case in cases:
        measured = measure(case)
        same = "bit for bit" if measured.same_after_export else "DIFFERS"
        rows.append(
            f"| {case.layout} | {case.size} | {case.against} | {measured.keys} | {measured.delta:.1e} | {same} |"
        )
        print(rows[-1], flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    where = f"Measured on {platform.machine()} CPU in fp32, jax {jax.__version__}, commit {commit.strip()}."
    text = README.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    README.write_text(f"{before}{START}\n{where}\n\n" + "\n".join(rows) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write_table(all_cases())
