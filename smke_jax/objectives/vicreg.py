"""VICReg between two views of the same images: trains a teacher from images alone."""

from smke_jax.losses.vicreg import vicreg as vicreg_parts
from smke_jax.objectives.base import Term, no_state


def vicreg(invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> Term:
    """Weighted sum of the three parts (Bardes et al. 2022, section 4); needs 'view1/projection', 'view2/projection'."""
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}

    def value(params, slots, reps, scope):
        parts = vicreg_parts(reps["view1/projection"], reps["view2/projection"], scope=scope)
        return sum(weights[name] * part for name, part in parts.items()), parts

    return Term(("view1/projection", "view2/projection"), no_state, value)
