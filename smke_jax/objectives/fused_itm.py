"""Image-text matching by a fusion encoder: does this caption belong to this image? (ALBEF, Li et al. 2021, eq. 4)"""

import jax.numpy as jnp
import optax

from smke_jax.losses.masked import mean_at
from smke_jax.objectives.base import Term, no_state

KINDS = ("pair", "wrong_text", "wrong_image")


def fused_itm() -> Term:
    """Cross entropy of match or no match over the B pairs, B images with a wrong caption, B captions with a wrong one.

    Needs the logits '{pair,wrong_text,wrong_image}/match' (B, 2), whose class 1 is a match.  The selection
    `hard_negatives` says which wrong ones.  Needs 'id' (B,) too: a pair that it chose although both are of the same
    image is no wrong one, and is left out.  With same_image='masked' there are such only where the batch holds nothing
    else; the metric 'same_image' is their share.
    A network that always says no is right in 2 of 3 cases.
    """
    matches = tuple(f"{kind}/match" for kind in KINDS)
    ids = ("id", "id@hard_text", "id@hard_image")

    def value(params, slots, reps, scope):
        logits = jnp.concatenate([reps[name] for name in matches]).astype(jnp.float32)
        own = reps["id"]
        wrong = jnp.concatenate([reps[name] != own for name in ids[1:]])
        counted = jnp.concatenate([jnp.ones(len(own), bool), wrong])
        labels = jnp.repeat(jnp.array([1, 0, 0]), len(own), total_repeat_length=3 * len(own))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32)
        metrics = {"accuracy": mean_at(right, counted, scope), "same_image": 1 - jnp.mean(wrong.astype(jnp.float32))}
        return mean_at(losses, counted, scope), metrics

    return Term((*matches, *ids), no_state, value)
