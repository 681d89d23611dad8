"""Image-text matching by feature fusion: does this caption belong to this image? (spec 10)"""

import jax
import jax.numpy as jnp

from smke_jax.activations import gelu
from smke_jax.errors import UserError
from smke_jax.losses.matching import cross_entropy
from smke_jax.objectives.base import Term

FUSIONS = {"additive": lambda x: x, "gelu": gelu}
SIDES = ("image", "text")


def itm(levels: tuple[str, ...] = ("fc1", "out"), fusion: str = "additive", width: int = 768) -> Term:
    """Mean over `levels` of the cross entropy of head(fusion(W_v · image + W_w · text)): does the pair belong together?

    Needs 'image/<level>' and 'text/<level>' (B, D), and what the selection `hard_negatives` chose: the term sees the B
    pairs, a wrong caption for every image and a wrong image for every caption.

    'additive' is as published, and cannot work: its logit is a function f of the image plus a function g of the
    caption.  With uniform negatives every image and every caption is seen once in a pair that belongs together and, on
    average, twice in one that does not.  At the constant logit log(1/2) the derivative of the expected loss by f of
    any image is therefore 1 · (1/3 - 1) + 2 · 1/3 = 0, and by g of any caption the same.  The loss is convex in f and
    g, so that this is its minimum: the answer is always no, right in 2 of 3 cases.  Of hard negatives f and g can learn
    how often each is drawn, and no more.  'gelu' makes the pair more than the sum of its parts.
    """
    if fusion not in FUSIONS:
        raise UserError(f"itm.fusion is {fusion!r}: known are {', '.join(FUSIONS)}")
    wrong = {side: f"@hard_{side}" for side in SIDES}
    needs = tuple(f"{side}/{level}{rows}" for level in levels for side in SIDES for rows in ("", wrong[side]))

    def init(key, shapes):
        normal = jax.nn.initializers.normal(0.02)
        params = {}
        for level, own in zip(levels, jax.random.split(key, len(levels)), strict=True):
            keys = jax.random.split(own, 3)
            params[level] = {
                side: normal(k, (shapes[f"{side}/{level}"].shape[-1], width)) for side, k in zip(SIDES, keys)
            }
            params[level] |= {"head": {"kernel": normal(keys[2], (width, 2)), "bias": jnp.zeros(2)}}
        return params, ()

    def value(params, slots, reps, scope):
        losses, accuracies, metrics = [], [], {}
        for level in levels:
            own = params[level]
            image, text = (reps[f"{side}/{level}"] @ own[side] for side in SIDES)
            other_image, other_text = (reps[f"{side}/{level}{wrong[side]}"] @ own[side] for side in SIDES)
            hidden = FUSIONS[fusion](jnp.concatenate([image + text, image + other_text, other_image + text]))
            labels = jnp.repeat(jnp.array([1, 0, 0]), len(image), total_repeat_length=3 * len(image))
            loss, accuracy = cross_entropy(hidden @ own["head"]["kernel"] + own["head"]["bias"], labels)
            losses.append(loss)
            accuracies.append(accuracy)
            metrics |= {f"loss_{level}": loss, f"accuracy_{level}": accuracy}
        metrics["accuracy"] = sum(accuracies) / len(levels)
        return sum(losses) / len(levels), metrics

    return Term(needs, init, value)
