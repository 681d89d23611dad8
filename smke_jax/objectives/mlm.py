"""Masked words, found from the rest of the caption and from its image (ALBEF, Li et al. 2021, eq. 3 and 7)."""

import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.limits import SHARE
from smke_jax.losses.masked import masked_words
from smke_jax.objectives.base import Term
from smke_jax.objectives.ramps import ramped

OF_ALBEF = 0.4  # the share of the momentum encoder's words


def mlm(teacher: str = "", share: float = OF_ALBEF, ramp_steps: int = 0) -> Term:
    """Mean over all masked tokens of the cross entropy of 'masked_text/logits' (B, M, V) with the token that was there.

    Needs 'masked_text/labels' (B, M) too, -1 where there is none.
    teacher:    the prefix of the names of a teacher's logits, such as 'momentum/'; its softmax is then learned with the
                weight `share`, which rises from 0 in the first `ramp_steps` steps.  '' has no teacher
    """
    SHARE.check("share", share)
    if not teacher and ramp_steps:
        raise UserError("mlm.ramp_steps is of the teacher's share: name a teacher, or leave ramp_steps out")
    if not teacher and share != OF_ALBEF:
        raise UserError("mlm.share is the weight of a teacher's words: name a teacher, or leave share out")
    taught = f"{teacher}masked_text/logits"

    def init(key, shapes):
        return {}, {"step": jnp.zeros((), jnp.int32)} if teacher else ()

    def value(params, slots, reps, scope):
        options = {"taught": reps[taught], "share": ramped(share, slots["step"], ramp_steps)} if teacher else {}
        loss, accuracy = masked_words(reps["masked_text/logits"], reps["masked_text/labels"], scope=scope, **options)
        masked = jnp.mean(jnp.sum(reps["masked_text/labels"] >= 0, axis=1).astype(jnp.float32))
        return loss, {"accuracy": accuracy, "masked_tokens": masked}

    def update(slots, reps):
        return {"step": slots["step"] + 1} if teacher else slots

    needs = ("masked_text/logits", "masked_text/labels", *((taught,) if teacher else ()))
    return Term(needs, init, value, update)
