"""What an evaluator is, and what an asset is: both are made by running passes over a whole split."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from smke_jax.passes.base import Pass
from smke_jax.tasks.base import Split, Task


class Encode(Protocol):
    """Runs passes over a whole split.

    encode(names, split) -> {name: (rows, …) fp32}: representations of all rows, in order, on every process.  The names
    of one call are of things with equally many rows: images or captions.
    """

    def __call__(self, names: tuple[str, ...], split: Split) -> dict[str, np.ndarray]: ...


class Figures(NamedTuple):
    """What an evaluation found.

    scalars: {name: number}, for the curves of a run
    record:  everything there is to say, as JSON
    arrays:  what to keep beside it, such as the rank of every query
    summary: the same for people
    examples: () -> what a report shows of it, images as uint8 (H, W, 3); None without pictures.  Any of these keys:
             {'text_to_image': [(caption, [(image, is right), …]), …], 'image_to_text': [(image, [(caption, is right),
             …]), …], 'predictions' and 'mistakes': [(image, its class, [(class found, is right), …]), …],
             'words': [(image, caption, [a `word_patches.Match`, …]), …],
             'reconstructions': [a `reconstruction.Reconstruction`, …],
             'masked_words': [a `masked_words.Caption`, …]}
    """

    scalars: Mapping[str, float]
    record: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = {}
    summary: str = ""
    examples: Callable[[], Mapping[str, Any]] | None = None


class Evaluator(NamedTuple):
    """One way to measure what a run has learned.

    needs: representations that it reads
    run:   (encode, task, split) -> Figures; `split` is the one named below
    split: a split of the task; '' in a config leaves the evaluator out
    every: steps; 0 measures after the last step alone
    best:  the scalar that ranks checkpoints; of a name that ends in 'loss' the lowest value is the best.  '' ranks none
    check: (task, split) -> None: opens what `run` reads besides, before a run begins; UserError for what is not there
    check_passes: (the passes that make `needs`) -> None: UserError where they make what `run` would mistake
    adds:  arrays that `run` adds to the split by itself
    stored: whether features that an asset keeps of the split may stand for what they were made of; False for an
           evaluator that runs the networks on rows of its own
    """

    needs: tuple[str, ...]
    run: Callable[[Encode, Task, Split], Figures]
    split: str
    every: int = 0
    best: str = ""
    check: Callable[[Task, Split], None] = lambda task, split: None
    stored: bool = True
    adds: tuple[str, ...] = ()
    check_passes: Callable[[Sequence[Pass]], None] = lambda passes: None

    def rank(self, figures: Figures) -> float | None:
        """The number by which checkpoints are ranked: higher is better.  None where this evaluator ranks none."""
        if not self.best:
            return None
        value = figures.scalars[self.best]
        return -value if self.best.endswith("loss") else value


class Asset(NamedTuple):
    """Arrays that frozen networks make once of whole splits; they are kept on disk.

    provides: the representations that it holds
    by_id:    batches get the row of their image, or of their caption, under the same names, and no pass makes them
    whole:    selections read the whole arrays, whose rows are spread over the devices, and beside them 'id' (N,), the
              number of the image of every row, -1 for rows that fill up the last device
    normalised: every row is divided by its length
    views:    how many random views of every image are kept, of which each row of a batch gets one; 0 keeps the image
              as it is evaluated
    evaluated: further splits, kept as they are evaluated: evaluators read them instead of running the networks
    folder:   where it is kept, for other runs too; '' is a folder of the run
    dtype:    in which it is kept
    """

    provides: tuple[str, ...]
    by_id: bool = True
    whole: bool = False
    normalised: bool = False
    views: int = 0
    evaluated: tuple[str, ...] = ()
    folder: str = ""
    dtype: str = "float32"
