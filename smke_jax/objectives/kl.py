"""Both modalities predict the teacher's distribution over classes (Transformer SHRe's L_KD, spec 5)."""

from smke_jax.losses.distillation import kl_divergence
from smke_jax.objectives.base import Term, both_heads


def kl() -> Term:
    """½ KL(p ‖ q_image) + ½ KL(p ‖ q_text), p being the softmax of 'target/logits' and q that of the heads.

    Needs 'image/head', 'text/head', 'target/logits' (B, C); the temperature is 1.
    """
    return both_heads("kl", "target/logits", kl_divergence)
