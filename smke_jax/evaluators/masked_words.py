"""What a run makes of hidden words of captions that it has not seen, with their image and with another one."""

from typing import NamedTuple

import numpy as np

from smke_jax.errors import UserError
from smke_jax.evaluators.base import Encode, Evaluator, Figures
from smke_jax.evaluators.reconstruction import drawn_rows
from smke_jax.limits import AT_LEAST_1, Range
from smke_jax.passes.draws import DRAWS
from smke_jax.tasks.base import Split, Task, chosen_rows

NAMES = ("masked_text/logits", "masked_text/labels")
HIDDEN = "masked_text/chosen"
ROWS = 32  # captions at a time: the logits of all words at their hidden places are some 100 MB
TOP = 5


class Word(NamedTuple):
    """A token of a caption; where it was hidden, what was taken for it, [(token, probability), …], the best first."""

    text: str
    guesses: list[tuple[str, float]] = []


class Caption(NamedTuple):
    photo: np.ndarray  # uint8 (H, W, 3)
    words: list[Word]


def masked_words(
    *, captions: int = 256, pictures: int = 6, guesses: int = 3, split: str = "dev", every: int = 0
) -> Evaluator:
    """Of the hidden tokens of `captions` of different photos, always the same tokens:

    'loss', the mean of -log p of the token that was there; 'accuracy', how often it is the likeliest; 'top5'.
    'other_image/…', the same with the photo of another caption: how much the image tells shows in the difference.
    Checkpoints are ranked by the loss.  What is hidden of a caption is as in training.
    pictures: captions that a report shows, each hidden token with its `guesses` likeliest words
    """
    AT_LEAST_1.check("captions", captions)
    Range(1, 100).check("guesses", guesses)

    def run(encode: Encode, task: Task, on: Split) -> Figures:
        photos, part = drawn_rows(on, captions)
        if len(photos) < 2:
            raise UserError(f"masked_words compares images with each other: {on.name} has {len(photos)}, give two")
        image = part.columns["image"]
        other = image._replace(read=lambda rows: image.read([(row + 1) % len(photos) for row in rows]))
        swapped = part._replace(columns={**part.columns, "image": other})
        own, wrong = (_found(encode, x, len(photos)) for x in (part, swapped))
        scalars = own | {f"other_image/{name}": value for name, value in wrong.items() if name != "tokens"}
        count = int(scalars.pop("tokens"))
        protocol = f"{count} hidden tokens of {len(photos)} captions of {on.name}"
        summary = f"{protocol}: " + ", ".join(f"{name} {value:.3f}" for name, value in scalars.items())
        record = {"protocol": protocol, "captions": len(photos), "tokens": count, **scalars}
        examples = None
        if pictures and "pixels" in on.facts:
            shown = _captions(encode, part, task, min(pictures, len(photos)), guesses)
            few = [on.facts["pixels"](int(photo)) for photo in photos[: len(shown)]]
            made = [Caption(*pair) for pair in zip(few, shown, strict=True)]
            examples = lambda: {"masked_words": made}  # noqa: E731
        return Figures(scalars, record, {}, summary, examples)

    def check(task: Task, on: Split) -> None:
        if "text" not in on.columns or "caption_image" not in on.facts:
            raise UserError(f"masked_words reads captions and their photos: {on.name} has none")

    needs = (*NAMES, HIDDEN)
    return Evaluator(needs, run, split, every, best="loss", check=check, stored=False, adds=(DRAWS,))


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    """The logarithms of the softmax over the last axis."""
    from scipy.special import log_softmax  # slow to import

    return log_softmax(rows, axis=-1)


def _found(encode: Encode, part: Split, count: int) -> dict[str, float]:
    """Means over the hidden tokens of `count` rows, and their number."""
    sums = np.zeros(4)  # -log p, likeliest, among the likeliest five, tokens
    for first in range(0, count, ROWS):
        made = encode(NAMES, chosen_rows(part, range(first, min(count, first + ROWS))))
        logits, labels = (made[name] for name in NAMES)
        there = labels >= 0
        rows, right = logits[there], labels[there].astype(int)
        own = np.take_along_axis(rows, right[:, None], axis=1)
        ahead = (rows > own).sum(axis=1)
        losses = -np.take_along_axis(_log_softmax(rows), right[:, None], axis=1)
        sums += losses.sum(), (ahead == 0).sum(), (ahead < TOP).sum(), there.sum()
    means = sums[:3] / max(sums[3], 1)
    return dict(zip(("loss", "accuracy", "top5"), means.tolist(), strict=True)) | {"tokens": float(sums[3])}


def _captions(encode: Encode, part: Split, task: Task, count: int, guesses: int) -> list[list[Word]]:
    """The words of the first `count` captions, with what was taken for the hidden ones."""
    few = chosen_rows(part, range(count))
    made = encode((*NAMES, HIDDEN), few)
    ids, numbers = (few.columns[name].read(range(count)) for name in ("text", "text_words"))
    name = lambda token: task.tokenizer.decode([token])  # noqa: E731
    shown = []
    for row in range(count):
        words, hidden = [], np.flatnonzero(made[HIDDEN][row] > 0).tolist()
        for place in np.flatnonzero(numbers[row] >= 0).tolist():
            taken = []
            if place in hidden:  # the logits are in the order of the hidden places
                log_p = _log_softmax(made[NAMES[0]][row, hidden.index(place)])
                taken = [(name(token), float(np.exp(log_p[token]))) for token in np.argsort(-log_p)[:guesses]]
            words.append(Word(name(ids[row, place]), taken))
        shown.append(words)
    return shown
