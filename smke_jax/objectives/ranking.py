"""Image-text ranking at one or several levels: the objective of the original SHRe (spec 20)."""

from smke_jax.losses.contrastive import normalise
from smke_jax.losses.margin import ranking_loss
from smke_jax.losses.same_image import NEGATIVE, check_same_image, masked_ids
from smke_jax.objectives.base import Term, no_state


def ranking(
    levels: tuple[str, ...] = ("fc1", "out", "head"),
    margin: float = 0.2,
    symmetric: bool = False,
    same_image: str = NEGATIVE,
) -> Term:
    """Mean over `levels` of `ranking_loss` with images as anchors; `symmetric` averages it with texts as anchors.

    Needs 'image/<level>' and 'text/<level>' (B, D) and 'id' (B,).
    same_image: what other captions of the same image are, 'negative' or 'masked', which counts for nothing.
    """
    check_same_image(same_image)

    def value(params, slots, reps, scope):
        ids = reps["id"]
        options = {"margin": margin, "scope": scope, "ids": masked_ids(ids, same_image)}
        losses, metrics = [], {}
        for level in levels:
            image, text = normalise(reps[f"image/{level}"]), normalise(reps[f"text/{level}"])
            loss, accuracy = ranking_loss(image, text, **options)
            if symmetric:
                back, accuracy_back = ranking_loss(text, image, **options)
                loss, accuracy = (loss + back) / 2, (accuracy + accuracy_back) / 2
            losses.append(loss)
            metrics |= {f"loss_{level}": loss, f"accuracy_{level}": accuracy}
        return sum(losses) / len(losses), metrics

    needs = (*(f"{side}/{level}" for level in levels for side in ("image", "text")), "id")
    return Term(needs, no_state, value)
