"""Contrastive distillation: each modality finds the teacher's feature of its own image (spec 14, 15)."""

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.losses.contrastive import info_nce, normalise
from smke_jax.objectives import memory_bank
from smke_jax.objectives.base import INITIAL_LOG_SCALE, Term


def target_itc(
    bank_size: int = 0,
    random_bank: bool = False,
    learnable_scale: bool = False,
    mask_same_image: bool = False,
) -> Term:
    """½ CE(image head → targets) + ½ CE(text head → targets), candidates being the global batch and the bank.

    Needs 'image/head', 'text/head', 'target/cls' (B, D) and 'id' (B,).  The temperature is fixed at 0.07 unless
    `learnable_scale`.  `bank_size` 0 has no bank; slots that are unfilled or hold the same image are masked.
    """

    def init(key, shapes):
        params = {"logit_scale": jnp.full(1, INITIAL_LOG_SCALE, jnp.float32)} if learnable_scale else {}
        if not bank_size:
            return params, ()
        batch, width = shapes["target/cls"].shape
        if bank_size < batch:
            raise UserError(f"target_itc.bank_size {bank_size} is smaller than the batch of {batch}: raise it or set 0")
        make = (
            (lambda: memory_bank.random_bank(key, bank_size, width))
            if random_bank
            else (lambda: memory_bank.empty_bank(bank_size, width))
        )
        return params, make()

    def value(params, bank, reps, scope):
        scale = jnp.exp(params["logit_scale"][0] if learnable_scale else jnp.float32(INITIAL_LOG_SCALE))
        targets, ids = normalise(reps["target/cls"]), reps["id"]
        candidates = dict(
            scope=scope,
            ids=ids if mask_same_image else None,
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

    return Term(("image/head", "text/head", "target/cls", "id"), init, value, update)
