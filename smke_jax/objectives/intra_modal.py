"""One modality learns its teacher's embeddings of the same rows; the other one need not be there (MoTIS, spec A.2)."""

import jax

from smke_jax.errors import UserError
from smke_jax.limits import ABOVE_0
from smke_jax.losses.contrastive import info_nce, normalise
from smke_jax.losses.distillation import mean_squared_error
from smke_jax.losses.same_image import NEGATIVE, check_same_image, masked_ids
from smke_jax.objectives.base import Term, equal_widths, scale_from, scale_of

LOSSES = ("contrastive", "mse")
LEVEL = "out"


def intra_modal(
    prediction: str = "image/out",
    target: str = "teacher_image/out",
    loss: str = "contrastive",
    temperature: float = 0.05,
    learnable_scale: bool = False,
    normalised: bool = True,
    same_image: str = NEGATIVE,
) -> Term:
    """-log softmax of each `prediction`'s own `target` among the targets of the global batch, mean over rows.

    Needs `prediction` and `target` (B, D), and of 'contrastive' 'id' (B,).  One direction: the targets are the
    candidates and get no gradient.
    loss:  'contrastive', cosines over `temperature`; 'mse', mean over rows and channels of the squared difference
    learnable_scale: the inverse temperature is learned and starts at 1 / `temperature`
    normalised: of 'mse': whether both are divided by their length first
    same_image: what the same image's other rows in the batch are, 'negative' or 'masked', which is no negative
    Source: Ren and Zhu 2022, section 3.1.  The paper says neither the temperature nor whether its ablation by MSE is of
    normalised embeddings.
    """
    check_same_image(same_image)
    ABOVE_0.check("temperature", temperature)
    if loss not in LOSSES:
        raise UserError(f"loss is {loss!r}: give {' or '.join(LOSSES)}")

    def init(key, shapes):
        equal_widths("intra_modal", shapes, prediction, target, remedy="set the student's width={}")
        learned = learnable_scale and loss == "contrastive"
        return scale_from(temperature, LEVEL) if learned else {}, ()

    def contrast(params, reps, scope):
        scale = scale_of(params, temperature, LEVEL)
        value, accuracy = info_nce(
            normalise(reps[prediction]), normalise(reps[target]), scale, scope=scope,
            ids=masked_ids(reps["id"], same_image), fixed_keys=True,
        )  # fmt: skip
        return value, {"accuracy": accuracy, "logit_scale": scale}

    def regress(params, reps, scope):
        pair = (reps[prediction], jax.lax.stop_gradient(reps[target]))
        return mean_squared_error(*(normalise(x) for x in pair) if normalised else pair), {}

    compute = {"contrastive": contrast, "mse": regress}[loss]
    ids = ("id",) if loss == "contrastive" else ()
    return Term((prediction, target, *ids), init, lambda params, slots, reps, scope: compute(params, reps, scope))
