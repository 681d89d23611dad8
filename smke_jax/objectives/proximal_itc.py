"""Image-text contrast with a bank of the whole data set, whose features may not change fast (thesis 3.2.4.3.1)."""

import jax
import jax.numpy as jnp

from smke_jax.errors import UserError
from smke_jax.facts import FromTask
from smke_jax.losses.collective import gather, take_rows
from smke_jax.losses.contrastive import info_nce, normalise
from smke_jax.losses.pairs import NOBODY, Rows
from smke_jax.losses.same_image import NEGATIVE, check_same_image, masked_ids
from smke_jax.objectives.base import OTHER, Term, initial_scales

UNSEEN = NOBODY
ROWS = 1024  # banks have a multiple of so many rows, and so divide over any usual number of devices


def proximal_itc(num_images: FromTask, level: str = "out", proximal: float = 30.0, same_image: str = NEGATIVE) -> Term:
    """½ CE(image → texts) + ½ CE(text → images) + proximal · the squared distance that features moved since last seen.

    Candidates are the features of the global batch and, for all other images of the data set that were seen before,
    those in a bank with one row per image, where the text is the caption of it that was seen last.  The regularisation
    keeps what is in the bank comparable: -log h(i, v⁽ᵗ⁻¹⁾) + λ ‖v⁽ᵗ⁾ - v⁽ᵗ⁻¹⁾‖², averaged over both modalities.
    Needs 'image/<level>' and 'text/<level>' (B, D) and 'id' (B,), the number of the image in the data set.
    same_image: what other captions of the same image in the batch are, 'negative' or 'masked', which is no negative.
    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", eq. 10.
    """
    check_same_image(same_image)
    if not num_images:
        raise UserError("its bank has a row for every image, and nobody says how many: give --images=N of `smke plan`")
    size = -(-num_images // ROWS) * ROWS

    def init(key, shapes):
        width = shapes[f"image/{level}"].shape[-1]
        banks = {side: {"features": jnp.zeros((size, width))} for side in OTHER}
        return initial_scales((level,)), {
            "ids": jnp.full(size, UNSEEN, jnp.int32),
            **banks,
        }

    def value(params, banks, reps, scope):
        scale, ids = jnp.exp(params["logit_scale"][level]), reps["id"]
        features = {side: normalise(reps[f"{side}/{level}"]) for side in OTHER}
        spread = scope if len(banks["ids"]) < size else scope._replace(axis=None)
        # An image of the batch is there as it is now: what the bank knows of it is no negative besides.
        others = jnp.where(jnp.isin(banks["ids"], gather(ids, scope)), NOBODY, banks["ids"])
        seen = take_rows(banks["ids"], ids, spread) == ids
        losses, metrics = [], {}
        for side, other in OTHER.items():
            contrast, accuracy = info_nce(
                features[side],
                features[other],
                scale,
                scope=scope,
                ids=masked_ids(ids, same_image),
                bank=(Rows(banks[other]["features"], others), ids, spread),
            )
            before = take_rows(banks[side]["features"], ids, spread)
            moved = jnp.mean(jnp.where(seen, jnp.sum(jnp.square(features[side] - before), axis=-1), 0.0))
            losses.append(contrast + proximal * moved)
            metrics |= {f"loss_{side}": contrast, f"moved_{side}": moved, f"accuracy_{side}": accuracy}
        filled = jnp.mean((banks["ids"] != UNSEEN).astype(jnp.float32)) * size / num_images
        return sum(losses) / 2, metrics | {"logit_scale": scale, "bank_filled": filled}

    def update(banks, reps):
        ids = reps["id"]
        # Of several captions of an image the last one stays: a scatter with equal places could keep any of them.
        place = jnp.where(jnp.any(jnp.triu(ids[:, None] == ids, k=1), axis=1), size, ids)
        put = lambda bank, rows: bank.at[place].set(rows, mode="drop")  # noqa: E731
        features = {side: jax.lax.stop_gradient(normalise(reps[f"{side}/{level}"])) for side in OTHER}
        return {
            "ids": put(banks["ids"], ids),
            **{side: {"features": put(banks[side]["features"], features[side])} for side in OTHER},
        }

    return Term((f"image/{level}", f"text/{level}", "id"), init, value, update, spread=("features", "ids"))
