"""Hard negatives from the global batch: the wrong partners that contrast finds most alike (spec 10; ALBEF)."""

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.matching import draw_negatives
from smke_jax.losses.same_image import NEGATIVE, check_same_image, masked_ids
from smke_jax.selections.base import Selection

NAME = "hard_negatives"


def hard_negatives(
    *, level: str = "out", hardness: float | None = None, scale_of: str = "itc", same_image: str = NEGATIVE
) -> Selection:
    """'hard_text' (B,): for every image another one's caption; 'hard_image' (B,): for every caption another image.

    Drawn from the global batch in proportion to exp(hardness · cosine) of 'image/<level>' and 'text/<level>' (B, D).
    hardness: None is the learned scale of the term `scale_of` at this level; 0 draws uniformly.
    same_image: 'negative' also draws other captions of the same image ('id'), 'masked' never draws them.
    Source: Li et al. 2021, section 3.2.
    """
    check_same_image(same_image)

    def run(state, arrays, scope):
        scale = hardness
        if hardness is None:
            scale = jnp.exp(_scale(state, scale_of, level))
        image, text = (normalise(arrays[f"{side}/{level}"]) for side in ("image", "text"))
        options = {"scope": scope, "ids": masked_ids(arrays["id"], same_image)}
        key_text, key_image = jax.random.split(scope.key)
        return {
            "hard_text": draw_negatives(key_text, image, text, scale, **options),
            "hard_image": draw_negatives(key_image, text, image, scale, **options),
        }

    reads = (f"terms/{scale_of}",) if hardness is None else ()
    return Selection(NAME, (f"image/{level}", f"text/{level}", "id"), ("hard_text", "hard_image"), run, reads)


def _scale(state, term: str, level: str) -> jax.Array:
    scales = state[f"terms/{term}"].get("logit_scale", {})
    if level not in scales:
        known = ", ".join(scales) or "no scale"
        raise UserError(
            f"the selection {NAME!r} takes the scale of the term {term!r} at the level {level!r}, but that term has "
            f"{known}: set its level to one of the term's, or give its hardness"
        )
    return scales[level]
