"""Masked image modelling: the hidden patches of an image are predicted (spec B.1, B.9)."""

import jax

from smke_jax.losses.masked import mean_at, spread_at
from smke_jax.objectives.base import Term, no_state


def mim(makes: str = "mim", chosen: str = "masked_image/chosen", watched: bool = False) -> Term:
    """Mean of '<makes>/error' (B, N) over the hidden patches of the global batch; others do not count.

    chosen:  the array (B, N) that is True at hidden patches
    watched: for a target that the run makes itself, the moving average's: the metrics 'embedding_std/target' and
             'embedding_std/prediction' say how different '<makes>/target' and '<makes>/prediction' (B, N, K) of the
             hidden patches are, 0 where all are the same.  The loop warns of that
    Source: SimMIM, MaskFeat, MAE and MAMO, whose errors differ: see `smke_jax.networks.patch_predictor`.
    """
    error = f"{makes}/error"
    spreads = {f"embedding_std/{what}": f"{makes}/{what}" for what in ("target", "prediction")} if watched else {}

    def value(params, slots, reps, scope):
        where = reps[chosen]
        metrics = {name: spread_at(jax.lax.stop_gradient(reps[x]), where, scope) for name, x in spreads.items()}
        return mean_at(reps[error], where, scope), metrics

    return Term((error, chosen, *spreads.values()), no_state, value)
