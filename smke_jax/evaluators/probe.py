"""A linear probe: how well the classes of images can be read from a representation, without training the encoder."""

import functools

from smke_jax.data.labelled import open_labelled
from smke_jax.errors import UserError
from smke_jax.evaluators.accuracy import accuracy_figures, labels_of
from smke_jax.evaluators.base import Encode, Evaluator, Figures
from smke_jax.evaluators.linear import METHODS
from smke_jax.evaluators.own_images import OwnImages, image_sizes_of
from smke_jax.evaluators.top_k import finite_rows
from smke_jax.tasks.base import Split, Task


def probe(
    *,
    feature: str = "class/feature",
    method: str = "logistic",
    data: str = "",
    layout: str = "folders",
    part: str = "dev",
    held_back: float = 0.2,
    split: str = "dev",
    every: int = 0,
) -> Evaluator:
    """Percent of right classes by a linear classifier that is fitted once to the features of the training images.

    feature: a representation (N, D) of images
    method:  logistic | ridge, see `smke_jax.evaluators.linear`
    data:    '' takes the labelled images of the run's own task, and the classifier learns from what the run is trained
             on.  Of a run without labels it is a folder of labelled images, and the classifier learns from its 'train'
    layout, held_back: of this folder, as of the task `labelled_images`; part: the split of it that is evaluated
    split:   of the run that is evaluated; with `data` its images say which sizes the networks take
    """
    if method not in METHODS:
        raise UserError(f"method is {method!r}: known are {', '.join(sorted(METHODS))}")

    @functools.cache
    def opened():
        return [open_labelled(layout, data, name, share=held_back) for name in ("train", part)]

    def check(task: Task, on: Split) -> None:
        fitted, tested = opened() if data else (task.split(task.train), on)
        if not data and "labels" not in fitted.facts:
            raise UserError(f"{fitted.name} has no labels: give data, a folder of labelled images")
        if fitted.digest == tested.digest:
            field = "part" if data else "split"
            raise UserError(f"the probe would be fitted to the images that it is evaluated on: set {field} to another")

    def run(encode: Encode, task: Task, on: Split) -> Figures:
        check(task, on)
        if data:
            sizes = image_sizes_of(on)
            (x, fitted), (other, tested) = (OwnImages(source, sizes).encoded(encode, feature) for source in opened())
        else:
            fitted, tested = task.split(task.train), on
            x, other = (finite_rows(encode((feature,), of)[feature], feature) for of in (fitted, tested))
        classes = len(fitted.facts["classes"])
        labels, _ = labels_of(fitted, classes)
        scores, penalty = METHODS[method](x, labels, other, classes)
        about = f"{tested.name}, {method} probe of {feature} ({x.shape[1]} channels), fitted to {len(x)} images"
        return accuracy_figures(scores, tested, f"{about}, penalty {penalty:g}")

    return Evaluator((feature,), run, split, every, best="top1", check=check, stored=False)
