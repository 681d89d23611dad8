"""Contrast with queues and soft targets over several steps, against NumPy: what is in the queues, and the ramp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from over_devices import assert_near
from scipy.special import log_softmax, softmax

from smke_jax.errors import UserError
from smke_jax.losses.collective import ALONE
from smke_jax.objectives.momentum_itc import momentum_itc

B, D, BANK, STEPS, SHARE, RAMP = 8, 5, 19, 4, 0.5, 2
SIDES = {"image": "text", "text": "image"}


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        names = [f"{prefix}{side}/out" for prefix in ("", "momentum/") for side in SIDES]
        yield {name: rng.normal(size=(B, D)).astype(np.float32) for name in names} | {
            "id": rng.integers(0, 12, B).astype(np.int32)
        }


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_hand(batch, queue, share, scale, same_image):
    """The loss; queue: {modality: [(feature, id), …]}, the oldest first."""
    losses = []
    for side, other in SIDES.items():
        features = np.concatenate([unit(batch[f"momentum/{other}/out"]), *[x[None] for x, _ in queue[other]]])
        ids = np.array([*batch["id"], *[i for _, i in queue[other]]])
        right = (batch["id"][:, None] == ids) if same_image else np.eye(B, len(ids))
        logits = [scale * unit(batch[f"{prefix}{side}/out"]) @ features.T for prefix in ("", "momentum/")]
        target = (1 - share) * right / right.sum(1, keepdims=True) + share * softmax(logits[1], axis=1)
        losses.append(-(target * log_softmax(logits[0], axis=1)).sum(1).mean())
    return sum(losses) / 2


@pytest.mark.parametrize("same_image", ["positive", "negative"])
def test_the_queues_hold_the_last_features_and_the_share_rises(same_image):
    term = momentum_itc(bank_size=BANK, share=SHARE, ramp_steps=RAMP, same_image=same_image)
    shapes = {name: jax.ShapeDtypeStruct((B, D), jnp.float32) for name in term.needs}
    params, slots = term.init(jax.random.key(0), shapes)
    queue = {side: [] for side in SIDES}
    value, update = jax.jit(lambda s, x: term.value(params, s, x, ALONE)), jax.jit(term.update)
    for number, batch in enumerate(batches()):
        loss, metrics = value(slots, batch)
        share = SHARE * min(1, number / RAMP)
        assert_near(metrics["share"], share)
        assert_near(metrics["bank_filled"], min(1, number * B / BANK))
        scale = float(np.exp(params["logit_scale"]["out"]))
        assert_near(loss, by_hand(batch, queue, share, scale, same_image == "positive"))
        slots = update(slots, batch)
        for side in SIDES:
            queue[side] += zip(unit(batch[f"momentum/{side}/out"]), batch["id"], strict=True)
            queue[side] = queue[side][-BANK:]
    assert number * B > BANK, "the oldest features have left"


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="share is 1.5: it has to be at least 0 and at most 1"):
        momentum_itc(share=1.5)
    with pytest.raises(UserError, match="same_image is 'masked': known here are negative, positive"):
        momentum_itc(same_image="masked")
    term = momentum_itc(bank_size=B - 1)
    with pytest.raises(UserError, match="momentum_itc.bank_size 7 is smaller than the batch of 8: raise it"):
        term.init(jax.random.key(0), {name: jax.ShapeDtypeStruct((B, D), jnp.float32) for name in term.needs})
