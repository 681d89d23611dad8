"""A linear probe: how well the classes of images can be read from a representation, without training the encoder."""

from smke_jax.errors import UserError
from smke_jax.evaluators.accuracy import accuracy_figures, labels_of
from smke_jax.evaluators.base import Encode, Evaluator, Figures
from smke_jax.evaluators.linear import METHODS
from smke_jax.evaluators.own_images import own_images
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

    def run(encode: Encode, task: Task, on: Split) -> Figures:
        fitted, tested = task.split(task.train), on
        if data:
            fields = {"layout": layout, "data": data, "held_back": held_back}
            fitted, tested = (own_images(on, part=name, **fields) for name in ("train", part))
        elif "labels" not in fitted.facts:
            raise UserError(f"{fitted.name} has no labels: give data, a folder of labelled images")
        x, other = (finite_rows(encode((feature,), of)[feature], feature) for of in (fitted, tested))
        classes = len(fitted.facts["classes"])
        labels, _ = labels_of(fitted, classes)
        scores, penalty = METHODS[method](x, labels, other, classes)
        about = f"{tested.name}, {method} probe of {feature} ({x.shape[1]} channels), fitted to {len(x)} images"
        return accuracy_figures(scores, tested, f"{about}, penalty {penalty:g}")

    return Evaluator((feature,), run, split, every, best="top1", stored=False)
