"""What a config file says of its place in the thesis' ladder of recipes, in a constant `RUNGS` beside `get_config`.

    RUNGS = (Rung(order=8, section="8", changed="MSE on the [CLS] of BEiT v2", coco=(51.66, 79.9, …), imagenet=30.4),)

A config without it is no rung.  One with several variants has a rung for each that is worth a line of the table.
"""

from pathlib import Path
from typing import NamedTuple

from smke_jax.errors import UserError


class Rung(NamedTuple):
    """One line of the ladder, with the figures that the thesis publishes for it; () and None where it has none.

    order:     place in the ladder, any number
    section:   of the specification, where the recipe is described
    changed:   in a few words, what is different from `against`
    variant:   of the config, '' for the config without one
    against:   name of the recipe that it is compared with, 'ctl' or 'token_types:after'; '' is the rung before
    coco:      R@1, R@5, R@10 from images to texts, then from texts to images, in percent, 5k images; or their mean
    flickr30k: the same for its 1k images
    imagenet:  zero-shot top-1 accuracy in percent
    published: what else was different in the published run; rungs that differ in this are not compared by its figures
    """

    order: float
    section: str
    changed: str
    variant: str = ""
    against: str = ""
    coco: tuple[float, ...] = ()
    flickr30k: tuple[float, ...] = ()
    imagenet: float | None = None
    published: str = ""


def check_rungs(rungs, file: Path) -> tuple[Rung, ...]:
    """`rungs`, the constant of a config file, if it is a tuple of sound Rungs; else raises UserError."""
    if not isinstance(rungs, tuple) or not all(isinstance(rung, Rung) for rung in rungs):
        raise UserError(f"RUNGS of {file} has to be a tuple of smke_jax.rungs.Rung")
    for rung in rungs:
        wrong = [name for name in ("coco", "flickr30k") if len(getattr(rung, name)) not in (0, 1, 6)]
        if wrong:
            raise UserError(f"{wrong[0]} of the rung {rung.changed!r} in {file}: give six recalls, or (their mean,)")
    return rungs
