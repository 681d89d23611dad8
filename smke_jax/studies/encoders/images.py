"""The image half: features of every tower, and how well the classes of labelled images can be read from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smke_jax.data.labelled import LabelledSource, open_labelled
from smke_jax.evaluators.accuracy import accuracy_figures
from smke_jax.evaluators.base import Figures
from smke_jax.evaluators.linear import ridge
from smke_jax.evaluators.own_images import OwnImages
from smke_jax.networks.encoders import describe_encoder
from smke_jax.networks.frozen import frozen
from smke_jax.studies.encoders.texts import FOLDERS
from smke_jax.studies.encoders.towers import Tower, encoder_of
from smke_jax.training.restore import TrainedRun

HELD_BACK = 0.2  # of each class, where the data has no dev split
ONE_POOL = ("efficientnet_lite", "resnet")  # encoders whose [CLS] is the mean over the image already


class ImageTask(NamedTuple):
    """Labelled images: what the probe is fitted to, and the images that are held back."""

    fitted: LabelledSource
    dev: LabelledSource

    @property
    def title(self) -> str:
        return f"{self.dev.dataset} dev"


def image_tasks(folder: Path) -> list[ImageTask]:
    """The labelled images in the sub-folders of `folder` that are none of GLUE's: a folder for each class in each.

    Raises UserError for a sub-folder that is not laid out so.
    """
    own = sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in FOLDERS)
    return [
        ImageTask(*(open_labelled("folders", str(path), split, share=HELD_BACK) for split in ("train", "dev")))
        for path in own
        if any(inside.is_dir() for inside in path.iterdir())
    ]


def image_figures(run: TrainedRun, tower: Tower, tasks: Sequence[ImageTask]) -> list[Figures]:
    """What the features of `tower`, [CLS] and the mean of the patches, say of each of `tasks`.

    Ridge regression in closed form, its penalty by the error of each row when left out.  Images are squashed to the
    size that the tower was made for.
    """
    description = describe_encoder(tower.path, "image")
    pools = ("cls",) if description["type"] in ONE_POOL else ("cls", "mean")
    if tower.scratch:
        network = frozen(start="random", model=description, image="image", pools=pools)
    else:
        network = frozen(start=tower.path, depth=tower.depth, image="image", pools=pools)
    encode = encoder_of(run, network, "images")
    found = []
    for task in tasks:
        (x, fitted), (other, dev) = (
            OwnImages(source, network.sizes).encoded(encode, "target/feature") for source in (task.fitted, task.dev)
        )
        scores, _ = ridge(x, np.asarray(fitted.facts["labels"]), other, len(task.fitted.classes))
        found.append(accuracy_figures(scores, dev, task.title))
    return found
