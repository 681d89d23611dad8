"""Networks for images of another size: what they learned for each place in the image, interpolated."""

import re
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from smke_jax.errors import UserError

EXTRA = 3  # last rows: [CLS] to patch, patch to [CLS], [CLS] to [CLS]


def for_image_size(params: Any, description: dict, image_size: int) -> tuple[Any, dict]:
    """(parameters, description) of the same network for square images of another size.

    Raises UserError for a network that learned nothing for each place and for a size that patches do not fill.
    """
    flat = flatten_dict(params, sep="/")
    places = "patch_size" in description
    resize = {path: RESIZED[kind] for path in flat for kind in RESIZED if places and re.fullmatch(kind, path)}
    if not resize:
        raise UserError(
            f"a model of type {description['type']!r} has no table of positions in the image to interpolate: "
            "leave --image_size out"
        )
    patch_size = description["patch_size"]
    if image_size <= 0 or image_size % patch_size:
        raise UserError(f"image size {image_size} is no multiple of the patch size {patch_size}: give one that is")
    old, new = (size // patch_size for size in (description["image_size"], image_size))
    resized = {path: function(flat[path], old, new) for path, function in resize.items()}
    return unflatten_dict(flat | resized, sep="/"), description | {"image_size": image_size}


def fitted(params: Any, description: dict, image_size: int) -> Any:
    """`params` for images of `image_size`, interpolated where the network learned something for each place."""
    learned = any(re.fullmatch(kind, path) for path in flatten_dict(params, sep="/") for kind in RESIZED)
    if not learned or image_size == description["image_size"]:
        return params
    return for_image_size(params, description, image_size)[0]


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


def resize_positions(table: np.ndarray, old: int, new: int) -> np.ndarray:
    """A ViT's learned positions for a grid of new² patches, (1 + old², D) -> (1 + new², D); that of [CLS] stays.

    Bicubic without antialiasing, as transformers and DINO's own code do, which DINOv2 was evaluated with at 224 pixels.
    Theirs differs from transformers' in the last step: it scales by (new + 0.1) / old and takes new² of the samples.
    """
    weights = _cubic_weights(old, new)
    places = np.einsum("yi,xj,ijd->yxd", weights, weights, table[1:].reshape(old, old, -1))
    return np.concatenate([table[:1], places.reshape(new * new, -1).astype(table.dtype)])


def _cubic_weights(old: int, new: int) -> np.ndarray:
    """(new, old): what each of `new` places takes of each of `old` ones; borders repeat (Keys 1981, a = -0.75)."""
    a = -0.75
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.floor(centres)[:, None].astype(int) + np.arange(-1, 3)
    x = np.abs(centres[:, None] - taps)
    near, far = ((a + 2) * x - (a + 3)) * x**2 + 1, a * (((x - 5) * x + 8) * x - 4)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new)[:, None], taps.clip(0, old - 1)), np.where(x <= 1, near, far))
    return weights


# Paths -> how what lies there is made to fit another grid.
RESIZED = {
    r"relative_bias(_\d+)?/table": resize_table,  # of smke_jax.models.beit.RelativePositionBias
    "position_embedding": resize_positions,  # of smke_jax.models.vit.Vit
}
