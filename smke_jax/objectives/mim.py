"""Masked image modelling: the hidden patches of an image are predicted (spec B.1, B.9)."""

import jax.numpy as jnp

from smke_jax.losses.collective import mean
from smke_jax.losses.distillation import mean_of_tokens
from smke_jax.objectives.base import Term, no_state


def mim(makes: str = "mim", mask: str = "masked_image/mask") -> Term:
    """Mean of '<makes>/error' (B, N) over the hidden patches of the global batch; others do not count.

    mask: the array (B, N) that is 1 at hidden patches
    It logs 'target_spread' and 'prediction_spread', the standard deviation of '<makes>/target' and '<makes>/prediction'
    (B, N, K) over all patches of the batch, mean over channels: a target that the run makes itself can collapse.
    Source: SimMIM, MaskFeat, MAE and MAMO, whose errors differ: see `smke_jax.networks.patch_predictor`.
    """
    error = f"{makes}/error"
    spreads = {f"{what}_spread": f"{makes}/{what}" for what in ("target", "prediction")}

    def value(params, slots, reps, scope):
        loss = mean_of_tokens(reps[error], reps[mask], scope=scope)
        return loss, {name: _spread(reps[array], scope) for name, array in spreads.items()}

    return Term((error, mask, *spreads.values()), no_state, value)


def _spread(x, scope):
    """(b, N, K) -> (): the standard deviation of each channel over the patches of all devices, mean over channels."""
    centre = mean(x.mean(axis=(0, 1)), scope)
    return jnp.mean(jnp.sqrt(mean(jnp.square(x - centre).mean(axis=(0, 1)), scope)))
