"""A score of every row, such as how alike two sentences are."""

from smke_jax.errors import UserError
from smke_jax.losses.distillation import mean_squared_error
from smke_jax.objectives.base import Term, no_state


def score(prediction: str = "class/logits", label: str = "label") -> Term:
    """Mean squared error of `prediction` (B, 1) and `label` (B,).

    Raises UserError for a prediction of several numbers, and for labels that are classes.  Source: spec 4 (STS-B).
    """

    def init(key, shapes):
        outputs, given = shapes[prediction].shape[-1], shapes[label]
        if outputs != 1 or given.dtype.kind != "f":
            raise UserError(
                f"config.terms.score: {prediction} has {outputs} numbers for a label of {given.dtype}: it is for tasks "
                "of one score, use classify for classes"
            )
        return no_state(key, shapes)

    def value(params, slots, reps, scope):
        return mean_squared_error(reps[prediction][:, 0], reps[label]), {}

    return Term((prediction, label), init, value)
