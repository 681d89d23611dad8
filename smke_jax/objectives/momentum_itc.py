"""Image-text contrast with queues and soft targets of a momentum encoder (ALBEF, Li et al. 2021, eq. 6; spec B.3)."""

import jax
import jax.numpy as jnp

from smke_jax.limits import SHARE
from smke_jax.losses.collective import gather
from smke_jax.losses.contrastive import normalise
from smke_jax.losses.same_image import NEGATIVE, POSITIVE, check_same_image
from smke_jax.losses.soft_contrast import soft_contrast
from smke_jax.objectives import memory_bank
from smke_jax.objectives.base import OTHER, Term, initial_scales
from smke_jax.objectives.ramps import ramped


def momentum_itc(
    level: str = "out",
    keys: str = "momentum/",
    bank_size: int = 65_536,
    share: float = 0.4,
    ramp_steps: int = 0,
    same_image: str = POSITIVE,
) -> Term:
    """½ CE(image → texts) + ½ CE(text → images) over the batch and a queue of each modality, towards soft targets.

    The target of a query is (1 - share) · what is right + share · the softmax of the momentum encoder's own logits over
    the same candidates.  Queries are 'image/<level>' and 'text/<level>' (B, D), with gradient; candidates are
    '<keys>image/<level>' and '<keys>text/<level>' of the batch and of a queue of `bank_size` past ones.  Needs 'id'.
    share:      rises from 0 in the first `ramp_steps` steps; ALBEF's first epoch
    same_image: what candidates of the query's image are: 'positive', all right in equal parts, in the queue too
                (ALBEF's fine-tuning), or 'negative' but for the query's own partner (its pretraining)
    A place of a queue that holds nothing yet is no candidate; ALBEF begins with random vectors there.  The scale is
    learned, from 1 / 0.07 and at most 100; ALBEF's is at most 1000.
    Every device holds the whole queues.
    """
    SHARE.check("share", share)
    check_same_image(same_image, (NEGATIVE, POSITIVE))
    online = {side: f"{side}/{level}" for side in OTHER}
    slow = {side: f"{keys}{side}/{level}" for side in OTHER}

    def init(key, shapes):
        options = {"random": False, "term": "momentum_itc"}
        banks = {side: memory_bank.new_bank(key, bank_size, shapes[slow[side]], **options) for side in OTHER}
        return initial_scales((level,)), {"banks": banks, "step": jnp.zeros((), jnp.int32)}

    def value(params, slots, reps, scope):
        scale, weight = jnp.exp(params["logit_scale"][level]), ramped(share, slots["step"], ramp_steps)
        losses, accuracies = [], []
        for side, other in OTHER.items():
            bank = slots["banks"][other]
            fresh = gather(normalise(jax.lax.stop_gradient(reps[slow[other]])), scope)
            loss, accuracy = soft_contrast(
                normalise(reps[online[side]]),
                jax.lax.stop_gradient(normalise(reps[slow[side]])),
                jnp.concatenate([fresh, bank.features]),
                scale,
                share=weight,
                ids=reps["id"],
                candidate_ids=jnp.concatenate([gather(reps["id"], scope), bank.ids]),
                same_image=same_image == POSITIVE,
                scope=scope,
            )
            losses.append(loss)
            accuracies.append(accuracy)
        metrics = {"logit_scale": scale, "accuracy": sum(accuracies) / 2, "share": weight}
        return sum(losses) / 2, metrics | {"bank_filled": memory_bank.filled(slots["banks"]["text"])}

    def update(slots, reps):
        features = {side: jax.lax.stop_gradient(normalise(reps[slow[side]])) for side in OTHER}
        banks = {side: memory_bank.push(slots["banks"][side], features[side], reps["id"]) for side in OTHER}
        return {"banks": banks, "step": slots["step"] + 1}

    return Term((*online.values(), *slow.values(), "id"), init, value, update)
