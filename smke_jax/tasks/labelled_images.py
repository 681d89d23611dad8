"""Images with one class each: to fine-tune an image encoder, or to evaluate one."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from smke_jax.data.augment import rand_augment, random_erasing
from smke_jax.data.labelled import LabelledSource, open_labelled
from smke_jax.data.pipeline import train_batches
from smke_jax.data.transforms import View, centre_crop
from smke_jax.errors import UserError
from smke_jax.parallel.process import failing_together
from smke_jax.tasks.base import BatchPlan, Column, Draft, Split, Task

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}  # of layouts that always have as many


def labelled_images(
    *,
    known: Mapping[str, Any] | None = None,
    layout: str = "folders",
    data: str = "",
    split: str = "train",
    held_back: float = 0.0,
    in_memory: bool = False,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    jitter: float = 0.0,
    grayscale: float = 0.0,
    rand_magnitude: float = 0.0,
    rand_std: float = 0.5,
    rand_count: int = 2,
    erasing: float = 0.0,
    threads: int = 2,
    prefetch_mib: float = 256.0,
) -> Draft:
    """Images with a class: 'image' (B, S, S, 3), 'label' (B,) and 'id'.

    Evaluated are the centres of the images, the shorter side of which has been resized to S.  The facts have the number
    of 'classes' and their 'class_names'.

    known:     the facts that a run recorded; None where it is about to begin.  A plan knows no classes: for layouts in
               CLASSES nothing has to be opened
    layout:    of smke_jax.data.labelled.LAYOUTS: folders | imagenet | cifar10 | cifar100 | scenes
    data:      folder of the images
    held_back: share of each class of 'train' that becomes 'dev' by a digest of the names, where there is no dev split
    in_memory: decode every image once and keep it; those that cannot be read are left out and counted
    rand_magnitude, rand_std, rand_count: of RandAugment, see `smke_jax.data.augment.rand_augment`; magnitude 0: none
    erasing:   probability of random erasing
    The other fields are those of `pairs`.
    """
    if not 0 <= rand_magnitude <= 10:
        raise UserError(f"rand_magnitude is {rand_magnitude}: give 0, which is none, to 10")
    opened = functools.cache(lambda name: open_labelled(layout, data, name, share=held_back, in_memory=in_memory))
    with failing_together():
        facts = dict(known or {})
        if "class_names" not in facts:
            facts |= _planned(layout) if known is not None and layout in CLASSES else _facts(opened(split))

    def finish(sizes: Mapping[str, int]) -> Task:
        if set(sizes) - {"image"}:
            raise UserError(f"{sorted(sizes)[0]}: this task has one view of an image: let the network read 'image'")
        if not sizes:
            raise UserError("no network takes the images of this task: name one in config.networks, such as classifier")
        view = View(sizes["image"], tuple(crop_scale), tuple(crop_ratio), flip, jitter, grayscale)
        views = Augmented(view, rand_magnitude, rand_std, rand_count, erasing)
        return _task(opened, facts, views, split, threads, prefetch_mib)

    return Draft(facts, finish)


def _planned(layout: str) -> dict[str, Any]:
    return {"classes": CLASSES[layout], "class_names": [f"class {i}" for i in range(CLASSES[layout])]}


def _facts(source: LabelledSource) -> dict[str, Any]:
    return {"num_images": len(source), "classes": len(source.classes), "class_names": list(source.classes)}


@dataclasses.dataclass(frozen=True)
class Augmented:
    """Makes 'image': a random crop with a flip, jitter, grayscale, RandAugment, random erasing, in this order."""

    view: View
    magnitude: float = 0.0
    std: float = 0.5
    count: int = 2
    erasing: float = 0.0

    @property
    def min_side(self) -> int:
        """`View.min_side`."""
        return self.view.min_side

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> dict[str, np.ndarray]:
        pixels = self.view(image, rng)
        if self.magnitude:
            seen = Image.fromarray(pixels)
            pixels = np.asarray(rand_augment(seen, rng, magnitude=self.magnitude, std=self.std, count=self.count))
        return {"image": random_erasing(pixels, rng, self.erasing) if self.erasing else pixels}


def _task(opened, facts: Mapping[str, Any], views: Augmented, split: str, threads: int, prefetch_mib: float) -> Task:
    size = views.view.size

    def example():
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        return {"image": jax.ShapeDtypeStruct((size, size, 3), jnp.uint8), "label": scalar, "id": scalar}

    def batches(plan: BatchPlan):
        wanted = frozenset(example()) if plan.arrays is None else plan.arrays
        source = opened(split)
        return train_batches(
            source, views if "image" in wanted else None, batch_size=plan.batch_size, seed=plan.seed, unit="images",
            labels=source.labels if "label" in wanted else None, process=plan.process, threads=threads,
            prefetch_mib=prefetch_mib,
        )  # fmt: skip

    def evaluated(name: str) -> Split:
        source = opened(name)
        if list(source.classes) != list(facts["class_names"]):
            theirs, ours = (", ".join(names[:3]) for names in (source.classes, facts["class_names"]))
            raise UserError(
                f"{source.dataset} has other classes ({theirs} …) than the run ({ours} …): give data of these"
            )
        return labelled_split(source, {"image": size}, centre_crop, "centre")

    return Task(
        facts=facts,
        example=example,
        length=lambda: len(opened(split)),
        identity=lambda: {"data": opened(split).digest},
        batches=batches,
        split=evaluated,
        train=split,
        counts=lambda name: opened(name).counts(),
        threads=threads,
    )


def labelled_split(
    source: LabelledSource, sizes: Mapping[str, int], view, called: str, read: Callable[[int], np.ndarray] | None = None
) -> Split:
    """All images of `source` as `view` (image, size) -> uint8 (size, size, 3) shows them, which is `called` so.

    sizes: {array: pixels per side}
    read:  number -> uint8 (H, W, 3); None is `source.whole`
    Its facts are 'labels' (N,), the names of the 'classes', and 'pixels' (number -> the image as it is stored).
    """

    read = read or source.whole

    def column(size):
        return Column(len(source), lambda rows: np.stack([view(read(i), size) for i in rows]), f"{called} of {size} px")

    facts = {"labels": source.labels, "classes": source.classes, "pixels": source.whole}
    columns = {array: column(size) for array, size in sizes.items()}
    return Split(f"{source.dataset} {source.split}", source.digest, columns, facts)
