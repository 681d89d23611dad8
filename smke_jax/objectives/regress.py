"""Both modalities regress the teacher's [CLS] (S-SMKE's L_KD, spec 8)."""

from smke_jax.losses.distillation import mean_squared_error
from smke_jax.objectives.base import Term, both_heads


def regress() -> Term:
    """½ MSE(image head, target) + ½ MSE(text head, target); needs 'image/head', 'text/head', 'target/cls' (B, D)."""
    return both_heads("regress", "target/cls", mean_squared_error)
