"""Every form in which a trained network leaves.  A new one is a file here and a line in FORMATS."""

from smke_jax.convert.export import flax, hf, onnx, thesis

FORMATS = {"flax": flax.FLAX, "hf": hf.HF, "thesis": thesis.LIGHTNING, "onnx": onnx.ONNX}
