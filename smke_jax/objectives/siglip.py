"""Image-text contrast by a sigmoid per pair instead of a softmax per row (SigLIP, Zhai et al. 2023)."""

import math

import jax.numpy as jnp

from smke_jax.losses.contrastive import multi_positive_sigmoid_loss, normalise, sigmoid_loss
from smke_jax.losses.same_image import NEGATIVE, POSITIVE, SAME_IMAGE, check_same_image, masked_ids
from smke_jax.objectives.base import Term


def siglip(levels: tuple[str, ...] = ("out",), same_image: str = NEGATIVE) -> Term:
    """Mean over `levels` of the sigmoid loss between image and text, a learned scale and bias per level.

    Needs 'image/<level>' and 'text/<level>' (B, D) and 'id' (B,).  Scale and bias start at 10 and -10 (section 3.2).
    same_image: what other captions of the same image are.  'negative': they do not match.  'masked': they count for
      nothing.  'positive': they match.
    """
    check_same_image(same_image, SAME_IMAGE)

    def init(key, shapes):
        return {
            name: {level: jnp.full((), start, jnp.float32) for level in levels}
            for name, start in (("logit_scale", math.log(10.0)), ("logit_bias", -10.0))
        }, ()

    def value(params, slots, reps, scope):
        losses, metrics = [], {}
        for level in levels:
            scale, bias = jnp.exp(params["logit_scale"][level]), params["logit_bias"][level]
            pairs = normalise(reps[f"image/{level}"]), normalise(reps[f"text/{level}"]), scale, bias
            if same_image == POSITIVE:
                loss, accuracy = multi_positive_sigmoid_loss(*pairs, ids=reps["id"], scope=scope)
            else:
                loss, accuracy = sigmoid_loss(*pairs, ids=masked_ids(reps["id"], same_image), scope=scope)
            losses.append(loss)
            metrics |= {
                f"loss_{level}": loss,
                f"accuracy_{level}": accuracy,
                f"logit_scale_{level}": scale,
                f"logit_bias_{level}": bias,
            }
        return sum(losses) / len(losses), metrics

    needs = (*(f"{side}/{level}" for level in levels for side in ("image", "text")), "id")
    return Term(needs, init, value)
