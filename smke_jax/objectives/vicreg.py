"""VICReg between two representations: views of the same images, or images and captions (spec B.9)."""

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.losses.collective import size
from smke_jax.losses.vicreg import vicreg as vicreg_parts
from smke_jax.objectives.base import Term, equal_widths
from smke_jax.perceptron import init_layers, through_layers


def vicreg(
    pair: tuple[str, str] = ("view1/projection", "view2/projection"),
    expander: tuple[int, ...] = (),
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Term:
    """Weighted sum of the three parts (Bardes et al. 2022, section 4) of `pair`, (B, D) and (B, D').

    pair:     not L2-normalised.  The deviation of a channel of unit vectors is about 1/√D at most, so that the variance
              part, which asks for 1, could never be met
    expander: channels of the layers that each of the pair goes through first, with layers of its own; () compares the
              pair as it is, of equal widths.  The authors' expander has batch normalisation and ReLU between its
              layers, is 8192 wide and sees batches of 2048
    The metric 'rows_per_channel' is the rows of the global batch divided by the channels: below 1 the covariances that
    are estimated from a batch are of a lower rank than there are channels.
    """
    a, b = pair
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}

    def init(key, shapes):
        for name in pair:
            if len(shapes[name].shape) != 2:
                raise UserError(
                    f"vicreg: {name} is {tuple(shapes[name].shape)}, and pair names one vector per row, (B, D): give "
                    "that of a [CLS] or a mean, such as pair/cls"
                )
        if not expander:
            equal_widths("vicreg", shapes, a, b, remedy="give an expander, such as (512, 512)")
            return {}, ()
        keys = jax.random.split(key)
        widths = [shapes[name].shape[-1] for name in pair]
        return {x: init_layers(k, (w, *expander)) for x, k, w in zip("ab", keys, widths, strict=True)}, ()

    def value(params, slots, reps, scope):
        expanded = [through_layers(params[x], reps[name]) if expander else reps[name] for x, name in zip("ab", pair)]
        parts = vicreg_parts(*expanded, scope=scope)
        rows, channels = expanded[0].shape
        rank = jnp.asarray(rows * size(scope) / channels, jnp.float32)
        return sum(weights[name] * part for name, part in parts.items()), {**parts, "rows_per_channel": rank}

    return Term((a, b), init, value)
