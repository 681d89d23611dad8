"""Image and text aligned by their cosine, with one negative each in place of a whole batch (spec 19)."""

from smke_jax.losses.contrastive import normalise
from smke_jax.losses.margin import matching_cosine_loss, mismatching_cosine_loss
from smke_jax.objectives.base import Term, no_state


def cosine(levels: tuple[str, ...] = ("out",), margin: float = 0.5, negatives: bool = True) -> Term:
    """Mean over `levels` of ½ (1 - cos of each pair) + ½ max(0, cos of each image and another's text - margin).

    Needs 'image/<level>' and 'text/<level>' (B, D).  The other text is drawn anew in every step, the same at all
    levels.  Without `negatives` the first part alone is left, whole: least where the student says always the same.
    """

    def value(params, slots, reps, scope):
        losses, metrics = [], {}
        for level in levels:
            image, text = normalise(reps[f"image/{level}"]), normalise(reps[f"text/{level}"])
            loss = metrics[f"positive_{level}"] = matching_cosine_loss(image, text)
            if negatives:
                negative = mismatching_cosine_loss(image, text, margin=margin, scope=scope)
                metrics[f"negative_{level}"] = negative
                loss = (loss + negative) / 2
            losses.append(loss)
        return sum(losses) / len(losses), metrics

    return Term(tuple(f"{side}/{level}" for level in levels for side in ("image", "text")), no_state, value)
