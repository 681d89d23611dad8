"""Weights as whole numbers of 8 bits with a scale for every output channel; what computes with them is fp32 again."""

from collections.abc import Mapping

import numpy as np

SCALE = "@scale"  # behind the name of a matrix: its scales
LARGEST = 127


def quantised(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name: array} with every matrix as int8 and 'NAME@scale' float32 beside it; vectors and numbers stay as they are.

    w ≈ scale · whole number, symmetric about 0.  Each output channel (the last axis) has its scale, each row of an
    embedding table.  The largest error of a weight is half of its scale.
    """
    found = {}
    for name, x in flat.items():
        if x.ndim < 2:
            found[name] = x
            continue
        axes = tuple(range(x.ndim - 1)) if not name.endswith("embedding") else (x.ndim - 1,)
        scale = np.abs(x).max(axis=axes, keepdims=True).astype(np.float32) / LARGEST
        scale = np.where(scale == 0, np.float32(1), scale)  # of a channel of zeros
        found[name] = np.round(x / scale).astype(np.int8)
        found[name + SCALE] = scale
    return found


def restored(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The way back, float32; arrays without a scale stay as they are."""
    return {
        name: x.astype(np.float32) * flat[name + SCALE] if name + SCALE in flat else x
        for name, x in flat.items()
        if not name.endswith(SCALE)
    }
