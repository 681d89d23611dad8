"""A Vision Transformer by itself, over whole images and over images of which patches are hidden."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from smke_jax.facts import Described
from smke_jax.models.fields import build_from
from smke_jax.models.towers import VITS
from smke_jax.networks.base import Network, Start
from smke_jax.networks.description import check_depth, described_by, of_every_patch
from smke_jax.networks.encoders import check_pixels
from smke_jax.networks.start import RANDOM, tower_start
from smke_jax.passes.base import statistics_of
from smke_jax.passes.hidden_patches import TOKEN, hiding_of
from smke_jax.passes.masked_image_tower import ENCODER, masked_image, whole_image
from smke_jax.passes.patch_targets import check_hog, patch_targets


def masked_image_tower(
    *,
    start: str,
    model: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    depth: int | None = None,
    makes: str = "image",
    mask_cell: int = 32,
    mask_ratio: float = 0.75,
    hide_by: str = TOKEN,
    noise: float = 1.0,
    hog_cells: int = 2,
    trained: bool = True,
    dropout: float = 0.0,
    remat: str = "none",
    dtype: str = "float32",
    described: Described = None,
) -> Network:
    """A Vision Transformer from what `smke convert` wrote, for losses on whole images and on hidden patches.

    Of 'image' it makes '<makes>/cls' and '<makes>/mean' (B, D), the mean over patches, and '<makes>/tokens' (B, N, D).
    Of the image with hidden patches it makes the same as 'masked_<makes>/…', and 'masked_<makes>/chosen' (B, N),
    which patches are hidden, drawn from what the selection `draws` makes.
    What a hidden patch can be rebuilt as: '<makes>/hog', '<makes>/pixel', '<makes>/pixel_norm', see `patch_targets`.
    `smke export` writes the encoder without the mask token.

    start:      the file says what model it is; 'random' needs `model`, a part such as 'vit'
    model:      fields that differ from the part's defaults have to agree with the file
    image_size: what was learned for each place is interpolated where it is not that of the file; None is that of the
                file
    depth:      how many of the first layers are kept; None is all of them
    mask_cell:  pixels per side of the blocks that are hidden; 0 hides nothing, and no masked image is made
    mask_ratio: share of the blocks that are hidden, rounded up
    hide_by:    token | zero | noise, see `smke_jax.passes.hidden_patches.Hiding`
    noise:      standard deviation of what hide_by=noise adds
    hog_cells:  per side of a patch; MaskFeat has two
    dropout:    in every layer, while it is trained
    remat:      of smke_jax.models.layers.REMAT
    described:  what the file said when the run began
    """
    said = dict(
        described
        or described_by(
            start, model, VITS, tower="image", what="tower of patches", example="vit", besides=("mean", "std"),
        )
    )  # fmt: skip
    if start != RANDOM and not described:
        check_pixels(start, said)
    check_depth(start, said.get("depth"), depth)
    size, patch = image_size or said["image_size"], said["patch_size"]
    # Every patch keeps its place.
    fields = of_every_patch(said, image_size=size, depth=depth or said["depth"], dropout=dropout)
    encoder = build_from({**fields, "remat": remat, "dtype": dtype}, VITS[said["type"]])
    hiding = hiding_of(mask_cell, mask_ratio, hide_by, noise, hog_cells)
    if hiding:
        hiding.check(size, patch)
        check_hog(patch, hog_cells)

    def init(key, specs):
        params = {ENCODER: encoder.init(key, jnp.zeros((2, size, size, 3)))["params"]}
        return params | (hiding.token(jax.random.fold_in(key, 1), encoder.width) if hiding else {})

    def forward(name, specs):
        pixels = statistics_of(said)
        whole = whole_image(encoder, name, makes=makes, **pixels)
        if not hiding:
            return (whole,)
        masked = masked_image(encoder, name, hiding, makes=makes, **pixels)
        return whole, masked, patch_targets(name, patch, makes=makes, hog_cells=hog_cells, **pixels)

    def begin(shapes) -> Start | None:
        if start == RANDOM:
            return None
        found = tower_start("image", start, shapes[ENCODER], fields)
        return found._replace(params={ENCODER: found.params}, origins={ENCODER: found.origins[""]})

    return Network(
        init,
        forward,
        begin,
        trained=trained,
        sizes={"image": size},
        described=said if start != RANDOM else {},
        export=lambda params, slots: (params[ENCODER], {**fields, **statistics_of(said)}),
    )
