"""What a run makes of hidden patches of images that it has not seen, in figures and in pictures (spec B.9)."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from smke_jax.errors import UserError
from smke_jax.evaluators.base import Encode, Evaluator, Figures
from smke_jax.limits import AT_LEAST_1
from smke_jax.passes.base import Pass
from smke_jax.passes.draws import DRAWS
from smke_jax.passes.patch_targets import BINS
from smke_jax.passes.patch_targets import TARGETS as RAW
from smke_jax.tasks.base import Column, Split, Task, chosen_rows

ROWS = 64  # images that are encoded at a time: the patches of so many in pixels are 40 MB at a ViT-B's size
TEXTS = "text"  # what the names of arrays of captions begin with


class Reconstruction(NamedTuple):
    """A picture, and what was made of its hidden patches.

    photo, seen:       uint8 (S, S, 3); what the network sees, in its own resolution
    predicted, target: uint8 (S, S, 3), or float (rows, columns, 9) of HOG, the mean over channels.  What is predicted
                       stands at the hidden patches, what is there at the others
    """

    photo: np.ndarray
    seen: np.ndarray
    predicted: np.ndarray
    target: np.ndarray


def reconstruction(
    *, makes: str = "mim", target: str = "hog", image: str = "image", images: int = 256, pictures: int = 4,
    split: str = "dev", every: int = 0,
) -> Evaluator:  # fmt: skip
    """Of the hidden patches of `images` of a split, always the same patches of the same images:

    'loss', the mean of '<makes>/error'; 'explained', 1 - the squared error as a share of the variance of the target
    around its mean over patches, in every channel.  An image goes with its first caption where the networks read one.
    Checkpoints are ranked by the loss.
    target:   of the network `patch_predictor`: 'hog', 'pixel' and 'pixel_norm' can be shown, 'ema' cannot
    image:    what the image tower makes
    pictures: how many of them a report shows
    """
    if target not in (*RAW, "ema"):
        raise UserError(f"target is {target!r}: give that of the patch_predictor, hog, pixel, pixel_norm or ema")
    AT_LEAST_1.check("images", images)
    figures = (f"{makes}/error", f"{makes}/prediction", f"{makes}/target", f"masked_{image}/chosen")
    shown = (f"{image}/pixel", f"masked_{image}/pixels")

    def run(encode: Encode, task: Task, on: Split) -> Figures:
        photos, part = drawn_rows(on, images)
        sums = np.zeros(4)  # errors, patches, squared errors, squared targets
        target_sum = 0.0
        for first in range(0, len(photos), ROWS):
            made = encode(figures, chosen_rows(part, range(first, min(len(photos), first + ROWS))))
            error, prediction, wanted, chosen = (made[name] for name in figures)
            hidden = chosen > 0
            wanted, prediction = wanted[hidden].astype(np.float64), prediction[hidden]
            sums += error[hidden].sum(), hidden.sum(), np.square(wanted - prediction).sum(), np.square(wanted).sum()
            target_sum += wanted.sum(axis=0)
        errors, count, squares, total = sums
        variance = total - np.square(target_sum).sum() / count
        scalars = {"loss": float(errors / count), "explained": float(1 - squares / max(variance, 1e-12))}
        protocol = f"hidden patches of {len(photos)} images of {on.name}, {target} as {makes}"
        summary = f"{protocol}: " + ", ".join(f"{name} {value:.4f}" for name, value in scalars.items())
        record = {"protocol": protocol, "images": len(photos), "patches": int(count), **scalars}
        examples = None
        if target != "ema" and pictures:
            few = chosen_rows(part, range(min(pictures, len(photos))))
            made = encode((*figures, *shown), few)
            raw = few.columns["image"].read(range(len(made[figures[0]])))
            own = {name.rpartition("/")[2]: x for name, x in made.items()}
            examples = lambda: {"reconstructions": reconstructions(raw, target, own)}  # noqa: E731
        return Figures(scalars, record, {}, summary, examples)

    def check_passes(passes: Sequence[Pass]) -> None:
        (maker,) = (p for p in passes if f"{makes}/target" in p.provides)
        made_of = next((kind for kind in RAW if f"{image}/{kind}" in maker.needs), "ema")
        if made_of != target:
            raise UserError(
                f"reconstruction: target is {target}, and {makes}/target is {made_of}: set target={made_of}, as the "
                f"network {maker.name} has it"
            )

    needs = (*figures, *(() if target == "ema" else shown))
    return Evaluator(needs, run, split, every, best="loss", stored=False, adds=(DRAWS,), check_passes=check_passes)


def drawn_rows(on: Split, count: int, seed: int = 0) -> tuple[np.ndarray, Split]:
    """`count` photos of a split, always the same, and a split of them, each with its first caption and its 'draws'.

    Where the split has captions, photos without one are left out.
    """
    photos, captions = np.arange(on.columns["image"].rows), None
    if any(name.startswith(TEXTS) for name in on.columns):
        photos, captions = np.unique(on.facts["caption_image"], return_index=True)
    chosen = np.random.default_rng(seed).permutation(len(photos))[:count]
    photos = photos[chosen]
    captions = None if captions is None else captions[chosen]
    columns = {}
    for name, column in on.columns.items():
        rows = captions if name.startswith(TEXTS) else photos
        columns[name] = chosen_rows(Split("", "", {name: column}), rows).columns[name]
    columns[DRAWS] = Column(len(photos), lambda rows: photos[list(rows)].astype(np.int32))
    return photos, on._replace(columns=columns)


def reconstructions(raw: np.ndarray, target: str, made: Mapping[str, np.ndarray]) -> list[Reconstruction]:
    """Pictures of uint8 images `raw` (n, S, S, 3).

    made: 'prediction', 'target' and 'pixel' (n, N, K), 'chosen' (n, N) and 'pixels' (n, S, S, 3), the last two
          normalised by one factor and one summand for every channel
    """
    hidden = made["chosen"] > 0
    known = unpatchified(made["pixel"])
    seen = _as_uint8(made["pixels"], raw, known)
    if target == "hog":
        both = np.where(hidden[:, :, None], made["prediction"], made["target"]), made["target"]
        drawn = [hog_cells(x) for x in both]
    else:
        found = made["prediction"]
        if target == "pixel_norm":  # each patch has its own mean and deviation back
            mean, deviation = made["pixel"].mean(2, keepdims=True), made["pixel"].std(2, keepdims=True, ddof=1)
            found = found * np.sqrt(deviation**2 + 1e-6) + mean
        pixels = unpatchified(np.where(hidden[:, :, None], found, made["pixel"]))
        drawn = [_as_uint8(pixels, raw, known), raw]
    return [Reconstruction(*own) for own in zip(raw, seen, *drawn, strict=True)]


def unpatchified(patches: np.ndarray) -> np.ndarray:
    """(n, N, p · p · 3), row by row -> (n, S, S, 3)."""
    count, grid = len(patches), math.isqrt(patches.shape[1])
    side = math.isqrt(patches.shape[2] // 3)
    cut = patches.reshape(count, grid, grid, side, side, 3)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(count, grid * side, grid * side, 3)


def hog_cells(values: np.ndarray) -> np.ndarray:
    """HOG of patches (n, N, 3 · 9 · c²) -> (n, grid · c, grid · c, 9), the mean over channels, none of it below 0."""
    count, grid = len(values), math.isqrt(values.shape[1])
    side = math.isqrt(values.shape[2] // (3 * BINS))
    cut = values.reshape(count, grid, grid, 3, BINS, side, side).mean(axis=3)
    return np.maximum(cut.transpose(0, 1, 4, 2, 5, 3).reshape(count, grid * side, grid * side, BINS), 0)


def _as_uint8(pixels: np.ndarray, raw: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Normalised pixels (n, S, S, 3) as uint8, by the factor and the summand that make `raw` of `known`."""
    made = []
    for channel in range(3):
        x, y = known[..., channel].ravel(), raw[..., channel].ravel().astype(float)
        factor, summand = np.polyfit(x, y, 1) if np.ptp(x) else (0.0, y[0])
        made.append(pixels[..., channel] * factor + summand)
    return np.clip(np.rint(np.stack(made, axis=-1)), 0, 255).astype(np.uint8)
