"""Image-text matching by feature fusion: does this caption belong to this image? (spec 10)"""

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.losses.collective import gather
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.matching import cross_entropy, draw_negatives
from smke_jax.objectives.base import Term

FUSIONS = {"additive": lambda x: x, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}
SIDES = ("image", "text")


def itm(
    levels: tuple[str, ...] = ("fc1", "out"),
    hardness: float = 1 / 0.07,
    fusion: str = "additive",
    width: int = 768,
    mask_same_image: bool = False,
) -> Term:
    """Mean over `levels` of the cross entropy of head(fusion(W_v · image + W_w · text)): does the pair belong together?

    Needs 'image/<level>' and 'text/<level>' (B, D) and 'id' (B,).  Shown are the B pairs, a wrong caption for every
    image and a wrong image for every caption, drawn from the global batch in proportion to exp(hardness · cosine) at
    the last level: 1 / 0.07 is where the temperature of `itc` starts, 0 draws uniformly.  With `mask_same_image`,
    another caption of the same image is never a wrong one.

    'additive' is as published, and cannot work: its logit is a function f of the image plus a function g of the
    caption.  With uniform negatives every image and every caption is seen once in a pair that belongs together and, on
    average, twice in one that does not.  At the constant logit log(1/2) the derivative of the expected loss by f of
    any image is therefore 1 · (1/3 - 1) + 2 · 1/3 = 0, and by g of any caption the same; as the loss is convex in f
    and g, that is its minimum: the answer is always no, right in 2 of 3 cases.  Of hard negatives f and g can learn
    how often each is drawn, and no more.  'gelu' makes the pair more than the sum of its parts.
    """
    if fusion not in FUSIONS:
        raise UserError(f"itm.fusion is {fusion!r}: known are {', '.join(FUSIONS)}")
    needs = (*(f"{side}/{level}" for side in SIDES for level in levels), "id")

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
        ids = reps["id"]
        image, text = (normalise(reps[f"{side}/{levels[-1]}"]) for side in SIDES)
        drawing = dict(scope=scope, ids=ids if mask_same_image else None)
        key_text, key_image = jax.random.split(scope.key)
        other_text = draw_negatives(key_text, image, text, hardness, **drawing)
        other_image = draw_negatives(key_image, text, image, hardness, **drawing)
        labels = jnp.repeat(jnp.array([1, 0, 0]), len(ids), total_repeat_length=3 * len(ids))
        losses, accuracies, metrics = [], [], {}
        for level in levels:
            own = params[level]
            image, text = (reps[f"{side}/{level}"] @ own[side] for side in SIDES)
            pairs = [image + text, image + gather(text, scope)[other_text], gather(image, scope)[other_image] + text]
            hidden = FUSIONS[fusion](jnp.concatenate(pairs))
            loss, accuracy = cross_entropy(hidden @ own["head"]["kernel"] + own["head"]["bias"], labels)
            losses.append(loss)
            accuracies.append(accuracy)
            metrics |= {f"loss_{level}": loss, f"accuracy_{level}": accuracy}
        metrics["accuracy"] = sum(accuracies) / len(levels)
        return sum(losses) / len(levels), metrics

    return Term(needs, init, value)
