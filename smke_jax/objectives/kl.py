"""Both modalities predict the teacher's distribution over classes (Transformer SHRe's L_KD, spec 5)."""

from smke_jax.losses.distillation import kl_divergence
from smke_jax.objectives.base import Term, equal_widths


def kl() -> Term:
    """½ KL(p ‖ q_image) + ½ KL(p ‖ q_text), p being the softmax of 'target/logits' and q that of the heads.

    Needs 'image/head', 'text/head', 'target/logits' (B, C); the temperature is 1.
    """

    def init(key, shapes):
        equal_widths("kl", shapes, "image/head", "target/logits")
        return {}, ()

    def value(params, slots, reps, scope):
        image = kl_divergence(reps["image/head"], reps["target/logits"])
        text = kl_divergence(reps["text/head"], reps["target/logits"])
        return (image + text) / 2, {"loss_image": image, "loss_text": text}

    return Term(("image/head", "text/head", "target/logits"), init, value)
