"""What every layout is held to: hidden states equal to PyTorch's, and the way back bit for bit.

Tests compute tiny networks and two layers at full width; of whole networks they hold names and shapes together.

python tests/convert/parity.py          computes every case, at tiny and full size, and writes the table into
                                        smke_jax/convert/README.md
"""

import importlib
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch

from smke_jax.convert.convert import Conversion, convert
from smke_jax.convert.layouts import detect
from smke_jax.convert.rules import to_torch
from smke_jax.convert.source import Source
from smke_jax.models.build import build_model
from smke_jax.models.layers import Block

TOLERANCE = 1e-5
README = Path(__file__).parents[2] / "smke_jax" / "convert" / "README.md"
START, END = "<!-- parity table: python tests/convert/parity.py -->", "<!-- end of the parity table -->"


class Reference(NamedTuple):
    """One random network as PyTorch has it; of one on the meta device all but the outputs.

    state:   {name: array}, as a file of this layout holds it, with everything that is left out on reading
    config:  what a config.json beside the file says
    inputs:  what our model is called with: NHWC images, or ids and mask
    compute: what PyTorch makes of the same: every hidden state from the first block's output on, the result, and the
             logits of a classifier
    """

    state: dict[str, np.ndarray]
    config: dict
    inputs: tuple[np.ndarray, ...]
    compute: Callable[[], Sequence[np.ndarray]]

    @property
    def source(self) -> Source:
        return Source(Path("file.safetensors"), self.state, self.config)


class Case(NamedTuple):
    """A layout at one size.  `make` builds the PyTorch network; `run` (model, params, *inputs) -> our outputs."""

    layout: str
    size: str  # tiny | wide (two layers of full width) | full
    against: str  # what computed the reference
    make: Callable[[], Reference]
    run: Callable[..., Sequence[Any]] | None = None  # None: `block_outputs`


class Measured(NamedTuple):
    """delta: largest |difference| relative to the largest |value| of that output; keys: tensors mapped."""

    delta: float
    keys: int
    same_after_export: bool


def apply(model, params, *inputs) -> tuple[Any, dict]:
    """(what the model returns, what its Blocks return and it sows)."""
    capture = lambda module, name: isinstance(module, Block)  # noqa: E731
    result, extra = model.apply({"params": params}, *inputs, capture_intermediates=capture, mutable=["intermediates"])
    return result, extra["intermediates"]


def blocks_of(tower: dict) -> list[np.ndarray]:
    """The output of every Block of a tower, in order."""
    return [tower[f"block_{i}"]["__call__"][0].out for i in range(sum(name.startswith("block_") for name in tower))]


def block_outputs(model, params, *inputs) -> list[np.ndarray]:
    """The output of every Block, what the model returns, and its logits where it has them."""
    result, tower = apply(model, params, *inputs)
    return [*blocks_of(tower), result, *tower.get("logits", ())]


def read(case: Case, reference: Reference) -> Conversion:
    """`reference` converted, with nothing left over, by a table that names nothing twice."""
    assert detect(reference.source).layout.name == case.layout
    conversion = convert(reference.source, case.layout)
    assert conversion.report.sound, conversion.report.lines()
    table = conversion.layout.rules(conversion.description)
    for names in ([rule.torch for rule in table], [path for rule in table for path in rule.paths]):
        assert len(names) == len(set(names))
    return conversion


def measure(case: Case) -> Measured:
    """Converts the case's file, compares every output with PyTorch's, and exports it again."""
    reference = case.make()
    conversion = read(case, reference)
    model = build_model(conversion.description)
    run = jax.jit(lambda params, *inputs: (case.run or block_outputs)(model, params, *inputs))
    with jax.default_matmul_precision("highest"):
        ours = run(conversion.params, *reference.inputs)
    theirs = reference.compute()
    assert len(ours) == len(theirs), f"{len(ours)} outputs, PyTorch has {len(theirs)}"
    delta = max(_delta(a, b) for a, b in zip(ours, theirs, strict=True))
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
    """What the tests assert of every case that is computed."""
    measured = measure(case)
    assert measured.delta <= TOLERANCE, measured
    assert measured.same_after_export


def check_whole(case: Case) -> None:
    """What they assert of whole networks: all names and shapes of the file are those of the model, layer by layer."""
    with torch.device("meta"):
        reference = case.make()
    conversion = read(case, reference)
    mapped, cleaned = conversion.report.mapped, conversion.layout.clean(reference.state)
    assert sum(cleaned[name].size for name in mapped) == sum(x.size for x in jax.tree.leaves(conversion.params))
    # Names that differ in the number of their layer alone go to layers as far apart; that the first two are in their
    # places, the computed cases show.
    steps: dict[tuple[str, str], set] = {}
    for name, paths in mapped.items():
        for path in paths:
            layer = re.search(r"[^/]*\d[^/]*", path)
            ours, theirs = ([int(n) for n in re.findall(r"\d+", x)] for x in (layer[0] if layer else "", name))
            step = tuple(a - b for a, b in zip(ours, theirs))
            steps.setdefault((re.sub(r"\d+", "#", name), re.sub(r"\d+", "#", path)), set()).add(step)
    assert all(len(found) == 1 for found in steps.values()), steps


def parametrized(cases: Sequence[Case], *sizes: str):
    """The `cases` of these sizes as the argument `case`."""
    chosen = [pytest.param(c, id=f"{c.layout}, {c.against}, {c.size}") for c in cases if c.size in sizes]
    return pytest.mark.parametrize("case", chosen)


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
    write_table([case for case in all_cases() if case.size != "wide"])
