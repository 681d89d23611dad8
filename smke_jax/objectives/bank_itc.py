"""Image-text contrast with banks of past keys as further negatives (spec 11, 12)."""

import jax
import jax.numpy as jnp

from smke_jax.losses.contrastive import info_nce, normalise
from smke_jax.losses.same_image import NEGATIVE, check_same_image, masked_ids
from smke_jax.objectives import memory_bank
from smke_jax.objectives.base import OTHER, Term, initial_scales


def bank_itc(
    levels: tuple[str, ...] = ("out",),
    keys: str = "",
    bank_size: int = 65_536,
    random_bank: bool = False,
    same_image: str = NEGATIVE,
) -> Term:
    """Mean over `levels` of ½ CE(image → texts) + ½ CE(text → images), candidates being the global batch and a bank.

    Queries are 'image/<level>' and 'text/<level>' (B, D), keys the same names after the prefix `keys`: '' is the
    student's own features, with gradient (spec 11), 'momentum/' those of its moving average, without (spec 12; MoCo, He
    et al. 2020).  Every level and modality has a bank of `bank_size` past keys, of which those count as negatives that
    are there and not of the query's image; `random_bank` fills it with random ones at the start.  Needs 'id' (B,) too.
    same_image: what other captions of the same image in the batch are, 'negative' or 'masked', which is no negative.
    A learned scale per level.
    """
    check_same_image(same_image)

    def init(key, shapes):
        seeds = iter(jax.random.split(key, len(levels) * len(OTHER)))
        banks = {
            side: {
                level: memory_bank.new_bank(
                    next(seeds), bank_size, shapes[f"{keys}{side}/{level}"], random=random_bank, term="bank_itc"
                )
                for level in levels
            }
            for side in OTHER
        }
        return initial_scales(levels), banks

    def value(params, banks, reps, scope):
        ids = reps["id"]
        losses, metrics = [], {}
        for level in levels:
            scale = jnp.exp(params["logit_scale"][level])
            results = [
                info_nce(
                    normalise(reps[f"{side}/{level}"]),
                    normalise(reps[f"{keys}{other}/{level}"]),
                    scale,
                    scope=scope,
                    ids=masked_ids(ids, same_image),
                    fixed_keys=bool(keys),
                    bank=memory_bank.negatives(banks[other][level], ids, bank_size, scope),
                )
                for side, other in OTHER.items()
            ]
            loss, accuracy = (sum(parts) / len(parts) for parts in zip(*results, strict=True))
            losses.append(loss)
            metrics |= {f"loss_{level}": loss, f"accuracy_{level}": accuracy, f"logit_scale_{level}": scale}
        metrics["bank_filled"] = memory_bank.filled(banks["text"][levels[0]])
        return sum(losses) / len(losses), metrics

    def update(banks, reps):
        def push(side, level):
            features = jax.lax.stop_gradient(normalise(reps[f"{keys}{side}/{level}"]))
            return memory_bank.push(banks[side][level], features, reps["id"])

        return {side: {level: push(side, level) for level in levels} for side in OTHER}

    names = [f"{prefix}{side}/{level}" for prefix in ("", keys) for level in levels for side in OTHER]
    return Term((*dict.fromkeys(names), "id"), init, value, update, spread=memory_bank.SPREAD)
