"""Networks for images of another size: what they learned for each place in the image, interpolated."""

import re
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from smke_jax.errors import UserError

TABLE = re.compile(r"relative_bias(_\d+)?/table")  # of smke_jax.models.teachers.RelativePositionBias
EXTRA = 3  # last rows: [CLS] to patch, patch to [CLS], [CLS] to [CLS]


def for_image_size(params: Any, description: dict, image_size: int) -> tuple[Any, dict]:
    """(parameters, description) of the same network for square images of another size.

    Raises UserError for a network without tables of relative positions and for a size that patches do not fill.
    """
    flat = flatten_dict(params, sep="/")
    tables = [path for path in flat if TABLE.fullmatch(path)]
    if not tables:
        raise UserError(
            f"a model of type {description['type']!r} has no table of relative positions to interpolate: "
            "leave --image_size out"
        )
    patch_size = description["patch_size"]
    if image_size <= 0 or image_size % patch_size:
        raise UserError(f"image size {image_size} is no multiple of the patch size {patch_size}: give one that is")
    old, new = (size // patch_size for size in (description["image_size"], image_size))
    resized = {path: resize_table(flat[path], old, new) for path in tables}
    return unflatten_dict(flat | resized, sep="/"), description | {"image_size": image_size}


def resize_table(table: np.ndarray, old: int, new: int) -> np.ndarray:
    """BEiT's bias table for a grid of new² patches, ((2·old-1)² + 3, H) -> ((2·new-1)² + 3, H).

    Bicubic over the two offsets, which keeps a bias where it was relative to the image; the rows of [CLS] stay.  The
    same as PyTorch's `interpolate(mode="bicubic", antialias=True)`.  Public code differs: transformers interpolates
    bilinearly, unilm and timm by splines through samples spaced in a geometric progression.
    """
    spans, heads = (2 * old - 1, 2 * new - 1), table.shape[1]
    offsets = table[:-EXTRA].reshape(spans[0], spans[0], heads)
    offsets = np.asarray(jax.image.resize(offsets, (spans[1], spans[1], heads), "cubic"))
    return np.concatenate([offsets.reshape(-1, heads), table[-EXTRA:]])
