"""The scores of a batch's images and captions become those of a teacher of both modalities (MoTIS, spec A.3)."""

from smke_jax.limits import ABOVE_0
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.relational import relational_kl
from smke_jax.objectives.base import Term, equal_widths, scale_from, scale_of

LEVEL = "out"


def score_kl(
    prediction: tuple[str, str] = ("image/out", "text/out"),
    target: tuple[str, str] = ("teacher_image/out", "teacher_text/out"),
    temperature: float = 0.05,
    target_temperature: float = 0.05,
    learnable_scale: bool = False,
) -> Term:
    """½ mean over rows of KL(P ‖ Q) + ½ the same over columns, P and Q being softmaxes of score matrices (B, B).

    Q is that of the cosines of the first `prediction` with the second, over `temperature`; P that of the cosines of
    the first `target` with the second, over `target_temperature`.  P gets no gradient.
    Needs `prediction` (B, D) and `target` (B, C); rows of the same image count as others do, as P says what they are.
    learnable_scale: the student's inverse temperature is learned and starts at 1 / `temperature`
    Source: Ren and Zhu 2022, section 3.2, which leaves open temperatures, directions and factors; with the temperature
    of both at 1 / exp(logit scale) it is CLIP-KD's contrastive relational distillation (Yang et al. 2024).
    """
    for name, value in (("temperature", temperature), ("target_temperature", target_temperature)):
        ABOVE_0.check(name, value)

    def init(key, shapes):
        equal_widths("score_kl", shapes, *prediction, remedy="set the student's width={}")
        equal_widths("score_kl", shapes, *target, remedy="set the student's width={}")
        return scale_from(temperature, LEVEL) if learnable_scale else {}, ()

    def value(params, slots, reps, scope):
        scale = scale_of(params, temperature, LEVEL)
        first, second, *targets = (normalise(reps[name]) for name in (*prediction, *target))
        rows, columns = relational_kl(first, second, tuple(targets), scale, 1 / target_temperature, scope=scope)
        return (rows + columns) / 2, {"loss_rows": rows, "loss_columns": columns, "logit_scale": scale}

    return Term((*prediction, *target), init, value)
