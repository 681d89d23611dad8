"""How much of what its teacher says of every token a distilled student says as well."""

import numpy as np

from smke_jax.evaluators.base import Encode, Evaluator, Figures
from smke_jax.tasks.base import Split, Task, some_rows

ROWS = 512  # that are compared at a time: at the thesis' size both arrays of so many texts take 0.8 GB


def layer_agreement(
    *, prediction: str = "student/layers", target: str = "teacher/layers", mask: str = "", split: str = "dev",
    every: int = 0,
) -> Evaluator:  # fmt: skip
    """Of `prediction` and `target` (rows, L, D) over a whole split, the teacher's tokens being what is right:

    'loss', the mean squared error per token and channel; 'cosine', its mean over tokens; and 'explained', 1 - the
    squared error as a share of the target's variance over the tokens of each row.
    mask: the array (rows, L) that is 1 at tokens, 'text_mask' of texts; '' counts every position, of images
    Checkpoints are ranked by the loss.  The loss of every row is kept beside the figures.
    """

    def run(encode: Encode, task: Task, on: Split) -> Figures:
        rows = on.columns[mask or "image"].rows
        losses, tokens, cosines, squares = (np.zeros(rows) for _ in range(4))
        for first in range(0, rows, ROWS):
            here = slice(first, min(rows, first + ROWS))
            part = some_rows(on, first, ROWS)
            made = encode((prediction, target), part)
            a, b = made[prediction], made[target]
            kept = part.columns[mask].read(range(here.stop - first)) if mask else np.ones(a.shape[:2])
            tokens[here] = kept.sum(1)
            losses[here] = (np.square(a - b).mean(2) * kept).sum(1)
            mean = (b * kept[:, :, None]).sum(1, keepdims=True) / np.maximum(tokens[here], 1)[:, None, None]
            squares[here] = (np.square(b - mean).mean(2) * kept).sum(1)
            cosines[here] = (_cosine(a, b) * kept).sum(1)
        count = tokens.sum()
        scalars = {
            "loss": float(losses.sum() / count),
            "cosine": float(cosines.sum() / count),
            "explained": float(1 - losses.sum() / squares.sum()),
        }
        protocol = f"{prediction} against {target}, every token of {on.name}"
        summary = f"{protocol}: " + ", ".join(f"{name} {value:.4f}" for name, value in scalars.items())
        record = {"protocol": protocol, "rows": rows, "tokens": int(count), **scalars}
        return Figures(scalars, record, {"loss": (losses / np.maximum(tokens, 1)).astype(np.float32)}, summary)

    return Evaluator((prediction, target), run, split, every, best="loss")


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(rows, L, D), (rows, L, D) -> (rows, L)."""
    return (a * b).sum(2) / np.maximum(np.linalg.norm(a, axis=2) * np.linalg.norm(b, axis=2), 1e-12)
