"""Contrastive distillation: each modality finds the teacher's feature of its own image (spec 14, 15)."""

import jax
import jax.numpy as jnp

from smke_jax.losses.contrastive import info_nce, normalise
from smke_jax.losses.same_image import NEGATIVE, check_same_image, masked_ids
from smke_jax.objectives import memory_bank
from smke_jax.objectives.base import INITIAL_LOG_SCALE, Term, equal_widths, initial_scales


def target_itc(
    bank_size: int = 0,
    random_bank: bool = False,
    learnable_scale: bool = False,
    same_image: str = NEGATIVE,
) -> Term:
    """½ CE(image head → targets) + ½ CE(text head → targets), candidates being the global batch and the bank.

    Needs 'image/head', 'text/head', 'target/cls' (B, D) and 'id' (B,).  The temperature is fixed at 0.07 unless
    `learnable_scale`.  `bank_size` 0 has no bank; slots that are unfilled or hold the same image are masked.
    same_image: what other captions of the same image in the batch are, 'negative' or 'masked', which is no negative.
    """
    check_same_image(same_image)

    def init(key, shapes):
        equal_widths("target_itc", shapes, "image/head", "target/cls")
        params = initial_scales(("head",)) if learnable_scale else {}
        if not bank_size:
            return params, ()
        like = shapes["target/cls"]
        return params, memory_bank.new_bank(key, bank_size, like, random=random_bank, term="target_itc")

    def value(params, bank, reps, scope):
        scale = jnp.exp(params["logit_scale"]["head"] if learnable_scale else jnp.float32(INITIAL_LOG_SCALE))
        targets, ids = normalise(reps["target/cls"]), reps["id"]
        candidates = dict(
            scope=scope,
            ids=masked_ids(ids, same_image),
            fixed_keys=True,
            bank=memory_bank.negatives(bank, ids, bank_size, scope) if bank_size else None,
        )
        image, image_accuracy = info_nce(normalise(reps["image/head"]), targets, scale, **candidates)
        text, text_accuracy = info_nce(normalise(reps["text/head"]), targets, scale, **candidates)
        metrics = {
            "loss_image": image,
            "loss_text": text,
            "accuracy_image": image_accuracy,
            "accuracy_text": text_accuracy,
            "logit_scale": scale,
        }
        if bank_size:
            metrics["bank_filled"] = memory_bank.filled(bank)
        return (image + text) / 2, metrics

    def update(bank, reps):
        if not bank_size:
            return bank
        return memory_bank.push(bank, jax.lax.stop_gradient(normalise(reps["target/cls"])), reps["id"])

    return Term(("image/head", "text/head", "target/cls", "id"), init, value, update, spread=memory_bank.SPREAD)
