"""Image-text matching by a fusion encoder: does this caption belong to this image? (ALBEF, Li et al. 2021, eq. 4)"""

import jax.numpy as jnp

from smke_jax.losses.matching import cross_entropy
from smke_jax.objectives.base import Term, no_state

KINDS = ("pair", "wrong_text", "wrong_image")


def fused_itm() -> Term:
    """Cross entropy of match or no match over the B pairs, B images with a wrong caption, B captions with a wrong one.

    Needs the logits '{pair,wrong_text,wrong_image}/match' (B, 2), whose class 1 is a match.  The selection
    `hard_negatives` says which wrong ones; with same_image='masked' none is of the same image.
    A network that always says no is right in 2 of 3 cases.
    """
    needs = tuple(f"{kind}/match" for kind in KINDS)

    def value(params, slots, reps, scope):
        logits = jnp.concatenate([reps[name] for name in needs])
        count = len(reps[needs[0]])
        loss, accuracy = cross_entropy(logits, jnp.repeat(jnp.array([1, 0, 0]), count, total_repeat_length=3 * count))
        return loss, {"accuracy": accuracy}

    return Term(needs, no_state, value)
