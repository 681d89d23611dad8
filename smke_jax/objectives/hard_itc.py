"""Contrast of one modality with hard negatives of its own rows (MoTIS' L_HN, spec A.3)."""

from smke_jax.errors import UserError
from smke_jax.limits import ABOVE_0
from smke_jax.losses.contrastive import hard_info_nce, info_nce, normalise
from smke_jax.losses.same_image import NEGATIVE, check_same_image, masked_ids
from smke_jax.objectives.base import Term, equal_widths, scale_from, scale_of

LEVEL = "out"
FOLDS = ("separate", "batch")


def hard_itc(
    query: str = "image/out",
    key: str = "teacher_text/out",
    negatives: str = "hard/negatives",
    fold: str = "separate",
    temperature: float = 0.07,
    learnable_scale: bool = True,
    same_image: str = NEGATIVE,
) -> Term:
    """-log softmax of each query's own key among it and the query's hard negatives, mean over rows.

    Needs `query` and `key` (B, D), `negatives` (B, k, D), and of 'batch' 'id' (B,).  The negatives get no gradient.
    fold: 'separate' has no other candidates.  'batch' has the keys of the global batch too, and adds the contrast of
      each key with all queries: it stands for both directions of `itc`, which is then left out (weight=0).
    temperature: where the inverse temperature starts, or stays without `learnable_scale`
    same_image: of 'batch': what the same image's other rows in the batch are, 'negative' or 'masked'
    Source: Ren and Zhu 2022, section 3.2; the paper gives no formula.
    """
    check_same_image(same_image)
    ABOVE_0.check("temperature", temperature)
    if fold not in FOLDS:
        raise UserError(f"fold is {fold!r}: give {' or '.join(FOLDS)}")

    def init(_, shapes):
        equal_widths("hard_itc", shapes, query, key, remedy="set the student's width={}")
        equal_widths("hard_itc", shapes, query, negatives, remedy="set the student's width={}")
        return scale_from(temperature, LEVEL) if learnable_scale else {}, ()

    def value(params, slots, reps, scope):
        scale = scale_of(params, temperature, LEVEL)
        queries, keys, hard = (normalise(reps[name]) for name in (query, key, negatives))
        if fold == "separate":
            loss, accuracy = hard_info_nce(queries, keys, hard, scale)
            return loss, {"accuracy": accuracy, "logit_scale": scale}
        ids = masked_ids(reps["id"], same_image)
        there, accuracy = info_nce(queries, keys, scale, scope=scope, ids=ids, hard=hard)
        back, accuracy_back = info_nce(keys, queries, scale, scope=scope, ids=ids)
        return there + back, {"accuracy": accuracy, "accuracy_back": accuracy_back, "logit_scale": scale}

    ids = ("id",) if fold == "batch" else ()
    return Term((query, key, negatives, *ids), init, value)
