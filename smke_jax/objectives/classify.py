"""The class of every row: cross-entropy of a classifier's logits."""

import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.losses.classification import cross_entropy
from smke_jax.objectives.base import Term, no_state


def classify(logits: str = "class/logits", label: str = "label", smoothing: float = 0.0) -> Term:
    """Mean over rows of the cross-entropy of `logits` (B, C) with `label`.

    label:     (B,) integers in 0 … C - 1, or (B, C) shares of the classes, as mixed images have them
    smoothing: share of every target that is spread evenly over all classes
    It reports the share of rows whose highest logit is that of the label, of shares that of the largest.
    Raises UserError for shares of another number of classes, and for smoothing outside [0, 1).  Source: spec 3 and 4.
    """
    if not 0 <= smoothing < 1:
        raise UserError(f"smoothing is {smoothing}: give a share from 0 to below 1")

    def init(key, shapes):
        classes, given = shapes[logits].shape[-1], shapes[label].shape[1:]
        if given not in ((), (classes,)):
            raise UserError(f"config.terms.classify: {logits} has {classes} classes and a row of {label} {given[0]}")
        return no_state(key, shapes)

    def value(params, slots, reps, scope):
        own = reps[label]
        loss = jnp.mean(cross_entropy(reps[logits], own, smoothing))
        right = jnp.argmax(reps[logits], axis=1) == (own if own.ndim == 1 else jnp.argmax(own, axis=1))
        return loss, {"accuracy": jnp.mean(right.astype(jnp.float32))}

    return Term((logits, label), init, value)
