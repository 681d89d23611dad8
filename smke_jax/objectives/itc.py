"""Image-text contrast at one or several levels (spec 0.2, 8; register 1)."""

import jax.numpy as jnp

from smke_jax.losses.contrastive import multi_positive_info_nce, normalise, symmetric_info_nce
from smke_jax.losses.same_image import NEGATIVE, POSITIVE, SAME_IMAGE, check_same_image, masked_ids
from smke_jax.objectives.base import Term, initial_scales


def itc(
    levels: tuple[str, ...] = ("fc1", "out"),
    pair: tuple[str, str] = ("image", "text"),
    same_image: str = NEGATIVE,
) -> Term:
    """Mean over `levels` of the symmetric InfoNCE between the two sides of `pair`, a learned scale per level.

    Needs 'image/<level>' and 'text/<level>' (B, D) and 'id' (B,).
    same_image: what other captions of the same image are.  'negative': negatives as all others.  'masked': neither
      negative nor positive.  'positive': right as the own one is, in both directions: the loss of a query is the mean
      of -log softmax over all that are right (Khosla et al. 2020, eq. 2).
    """
    check_same_image(same_image, SAME_IMAGE)
    left, right = pair

    def init(key, shapes):
        return initial_scales(levels), ()

    def value(params, slots, reps, scope):
        ids = reps["id"]
        losses, metrics = [], {}
        for level in levels:
            scale = jnp.exp(params["logit_scale"][level])
            sides = (normalise(reps[f"{side}/{level}"]) for side in (left, right))
            if same_image == POSITIVE:
                loss, accuracy = multi_positive_info_nce(*sides, scale, ids=ids, scope=scope)
            else:
                loss, accuracy = symmetric_info_nce(*sides, scale, ids=masked_ids(ids, same_image), scope=scope)
            losses.append(loss)
            metrics |= {f"loss_{level}": loss, f"accuracy_{level}": accuracy, f"logit_scale_{level}": scale}
        return sum(losses) / len(losses), metrics

    needs = (*(f"{side}/{level}" for side in pair for level in levels), "id")
    return Term(needs, init, value)
