"""Both modalities regress the teacher's [CLS] (S-SMKE's L_KD, spec 8)."""

from smke_jax.losses.contrastive import normalise as normalised
from smke_jax.losses.distillation import mean_squared_error
from smke_jax.objectives.base import Term, both_heads


def regress(normalise: bool = False) -> Term:
    """½ MSE(image head, target) + ½ MSE(text head, target); needs 'image/head', 'text/head', 'target/cls' (B, D).

    normalise: heads and target are normalised to length 1 first, so that directions alone are learned.  This is the
      feature distillation of CLIP-KD (Yang et al. 2024), whose code weighs the sum of both MSEs with 2000: weight=4000.
    """

    def loss(head, target):
        return mean_squared_error(normalised(head), normalised(target))

    return both_heads("regress", "target/cls", loss if normalise else mean_squared_error)
