"""Target-CMLI as the author's code has it last: only the best pair of word and patch counts (spec 13, HEAD)."""

import jax.numpy as jnp

from smke_jax.losses.contrastive import normalise
from smke_jax.losses.margin import matching_cosine_loss
from smke_jax.losses.tokens import best_pair
from smke_jax.objectives.base import Term, no_state

NEEDS = ("image/head", "text/head", "target/cls", "text/head_tokens", "text/mask", "target/tokens")


def target_cmli_cosine() -> Term:
    """½ (1 - cos(image head, target)) + ¼ (1 - cos(text head, target)) + ¼ (1 - cosine of the best word and patch).

    Needs 'image/head', 'text/head', 'target/cls' (B, D), 'text/head_tokens' (B, L, D), 'text/mask' (B, L) and
    'target/tokens' (B, N, D).
    """

    def value(params, slots, reps, scope):
        image, text, target = (normalise(reps[name]) for name in ("image/head", "text/head", "target/cls"))
        words, patches = (normalise(reps[name]) for name in ("text/head_tokens", "target/tokens"))
        loss_image, loss_cls = (matching_cosine_loss(head, target) for head in (image, text))
        loss_patch = jnp.mean(1 - best_pair(words, patches, reps["text/mask"]))
        metrics = {"loss_image": loss_image, "loss_cls": loss_cls, "loss_patch": loss_patch}
        return loss_image / 2 + (loss_cls + loss_patch) / 4, metrics

    return Term(NEEDS, no_state, value)
