"""Image-text contrast at one or several levels (spec 0.2, 8; register 1)."""

import jax.numpy as jnp

from smke_jax.losses.contrastive import normalise, symmetric_info_nce
from smke_jax.objectives.base import Term, initial_scales


def itc(
    levels: tuple[str, ...] = ("fc1", "out"),
    pair: tuple[str, str] = ("image", "text"),
    mask_same_image: bool = False,
) -> Term:
    """Mean over `levels` of the symmetric InfoNCE between the two sides of `pair`, a learned scale per level.

    Needs 'image/<level>' and 'text/<level>' (B, D) and 'id' (B,).  With `mask_same_image`, other captions of the
    same image are no negatives.
    """
    left, right = pair

    def init(key, shapes):
        return initial_scales(levels), ()

    def value(params, slots, reps, scope):
        ids = reps["id"]
        losses, metrics = [], {}
        for level in levels:
            scale = jnp.exp(params["logit_scale"][level])
            loss, accuracy = symmetric_info_nce(
                normalise(reps[f"{left}/{level}"]),
                normalise(reps[f"{right}/{level}"]),
                scale,
                scope=scope,
                ids=ids if mask_same_image else None,
            )
            losses.append(loss)
            metrics |= {f"loss_{level}": loss, f"accuracy_{level}": accuracy, f"logit_scale_{level}": scale}
        return sum(losses) / len(losses), metrics

    needs = (*(f"{side}/{level}" for side in pair for level in levels), "id")
    return Term(needs, init, value)
