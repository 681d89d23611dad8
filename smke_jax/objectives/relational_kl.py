"""Similarities within the batch: those of the student's images and texts become the teacher's."""

from smke_jax.errors import UserError
from smke_jax.losses import relational
from smke_jax.losses.contrastive import normalise
from smke_jax.objectives.base import Term, scale_from, scale_of


def relational_kl(
    prediction: tuple[str, str] = ("image/out", "text/out"),
    target: str = "target/cls",
    teacher_temperature: float = 0.07,
    temperature: float = 0.07,
    learnable_scale: bool = False,
    diagonal: bool = True,
) -> Term:
    """½ KL(P ‖ Q) + ½ KL(P ‖ Q'), mean over rows, P, Q and Q' being softmaxes over the rows of the global batch.

    P is that of the cosines of `target` with itself, over `teacher_temperature`.  Q is that of the cosines of the first
    `prediction` with the second, and Q' that of the second with the first, over `temperature`.
    Needs both `prediction` (B, D) and `target` (B, C).  C may differ from D: similarities are compared, not features.
    learnable_scale: the student's inverse temperature is learned and starts at 1 / `temperature`
    diagonal:        whether the similarity of each row with itself counts.  In P it is 1, the largest there is: at a
                     low temperature it hides all others.
    Source: CLIP-KD (Yang et al. 2024), Contrastive Relational Distillation.  There the teacher has both modalities, P
    is made of images and texts as Q is, and the diagonal counts.  A P of one kind of features, without the diagonal, is
    that of Probabilistic Knowledge Transfer (Passalis, Tefas 2018).  Relational Knowledge Distillation (Park et al.
    2019) compares distances in the place of softmaxes.
    """
    level = prediction[0].rpartition("/")[2]

    def init(key, shapes):
        first, second = (shapes[name].shape[-1] for name in prediction)
        if first != second:
            raise UserError(
                f"config.terms.relational_kl: {prediction[0]} has {first} channels and {prediction[1]} {second}: "
                "give two representations of the same width as its prediction"
            )
        if not learnable_scale:
            return {}, ()
        return scale_from(temperature, level), ()

    def value(params, slots, reps, scope):
        scale = scale_of(params, temperature, level)
        first, second, taught = (normalise(reps[name]) for name in (*prediction, target))
        losses = relational.relational_kl(
            first, second, (taught, taught), scale, 1 / teacher_temperature, diagonal=diagonal, scope=scope
        )
        named = {f"loss_{name.replace('/', '_')}": loss for name, loss in zip(prediction, losses, strict=True)}
        return sum(losses) / 2, named | {"logit_scale": scale}

    return Term((*prediction, target), init, value)
