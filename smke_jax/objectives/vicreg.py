"""VICReg between two representations: views of the same images, or images and captions (spec B.9)."""

import jax.numpy as jnp

from smke_jax.losses.collective import size
from smke_jax.losses.vicreg import vicreg as vicreg_parts
from smke_jax.objectives.base import Term, equal_widths, no_state


def vicreg(
    pair: tuple[str, str] = ("view1/projection", "view2/projection"),
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Term:
    """Weighted sum of the three parts (Bardes et al. 2022, section 4) of `pair`, (B, D) each.

    pair: not L2-normalised.  The deviation of a channel of unit vectors is about 1/√D at most, so that the variance
          part, which asks for 1, could never be met.  Images and captions of unequal widths need an `expander`
    The metric 'rows_per_channel' is the rows of the global batch divided by D: below 1 the covariances that are
    estimated from a batch are of a lower rank than D.
    """
    a, b = pair
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}

    def init(key, shapes):
        equal_widths("vicreg", shapes, a, b, "put an `expander` on both")
        return no_state(key, shapes)

    def value(params, slots, reps, scope):
        parts = vicreg_parts(reps[a], reps[b], scope=scope)
        rows, channels = reps[a].shape
        rank = jnp.asarray(rows * size(scope) / channels, jnp.float32)
        return sum(weights[name] * part for name, part in parts.items()), {**parts, "rows_per_channel": rank}

    return Term((a, b), init, value)
