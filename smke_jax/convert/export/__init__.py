"""Every form in which a trained network leaves.  A new one is a file here, with its FORMAT, and a line in FORMATS."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smke_jax.convert.export.base import Format

# What each one is, for its model card and for `smke export --help`, which opens none of them.
FORMATS = {
    "flax": "parameters for JAX",
    "hf": "directory for PyTorch, of a student also for transformers",
    "thesis": "checkpoint for the thesis' PyTorch modules",
    "onnx": "two graphs for onnxruntime",
}
INT8 = "int8"  # matrices alone, with a scale for each channel; what computes with them is fp32
FLOATS = ("float32", "float16", "bfloat16")
DTYPES = (*FLOATS, INT8)  # of the weights


def format_of(name: str) -> "Format":
    """The form `name` of FORMATS."""
    return importlib.import_module(f"smke_jax.convert.export.{name}").FORMAT
