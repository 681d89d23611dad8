"""Both modalities regress the teacher's [CLS] (S-SMKE's L_KD, spec 8)."""

from smke_jax.losses.distillation import mean_squared_error
from smke_jax.objectives.base import Term, equal_widths


def regress() -> Term:
    """½ MSE(image head, target) + ½ MSE(text head, target); needs 'image/head', 'text/head', 'target/cls' (B, D)."""

    def init(key, shapes):
        equal_widths("regress", shapes, "image/head", "target/cls")
        return {}, ()

    def value(params, slots, reps, scope):
        image = mean_squared_error(reps["image/head"], reps["target/cls"])
        text = mean_squared_error(reps["text/head"], reps["target/cls"])
        return (image + text) / 2, {"loss_image": image, "loss_text": text}

    return Term(("image/head", "text/head", "target/cls"), init, value)
