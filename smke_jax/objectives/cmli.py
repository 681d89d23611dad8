"""Cross-modal late interaction: image-text contrast by the likeness of patches and words (FILIP; spec 13)."""

import jax
import jax.numpy as jnp

from smke_jax.losses.contrastive import matrix_info_nce, normalise
from smke_jax.losses.same_image import NEGATIVE, check_same_image, masked_ids
from smke_jax.losses.tokens import late_interaction
from smke_jax.objectives.base import Term, initial_scales


def cmli(width: int = 0, same_image: str = NEGATIVE) -> Term:
    """InfoNCE over the global batch in both directions, by `late_interaction`, with one learned scale.

    Needs 'image/tokens' (B, N, D), 'text/tokens' (B, L, D), 'text/mask' (B, L) and 'id' (B,).  With `width` the tokens
    are compared after a learned projection to it that both modalities share: all pairs of tokens of all pairs of
    examples cost B² · N · L · width products, many times what the towers cost, and FILIP too takes fewer dimensions.
    same_image: what other captions of the same image are, 'negative' or 'masked', which is no negative.
    """
    check_same_image(same_image)

    def init(key, shapes):
        params = initial_scales(("tokens",))
        if width:
            shape = (shapes["image/tokens"].shape[-1], width)
            params["projection"] = jax.nn.initializers.normal(0.02)(key, shape)
        return params, ()

    def value(params, slots, reps, scope):
        patches, words = (_unit(reps[f"{side}/tokens"], params) for side in ("image", "text"))
        scale, ids = jnp.exp(params["logit_scale"]["tokens"]), reps["id"]
        metrics, losses = {"logit_scale": scale}, []
        both = late_interaction(patches, words, reps["text/mask"], scope=scope)
        for side, scores in zip(("image", "text"), both, strict=True):
            loss, accuracy = matrix_info_nce(scores, scale, scope=scope, ids=masked_ids(ids, same_image))
            losses.append(loss)
            metrics |= {f"loss_{side}": loss, f"accuracy_{side}": accuracy}
        return sum(losses) / 2, metrics

    return Term(("image/tokens", "text/tokens", "text/mask", "id"), init, value)


def _unit(tokens, params):
    # Cosines are of the type that the tokens were computed in: on accelerators bfloat16, as FILIP's are float16.
    if "projection" in params:
        tokens = tokens @ params["projection"].astype(tokens.dtype)
    return normalise(tokens).astype(tokens.dtype)
