"""What is said of every patch, and how far that is from what the patch holds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from smke_jax.passes.base import Pass
from smke_jax.perceptron import through_layers
from smke_jax.standardise import standardised


class Target(NamedTuple):
    """What is predicted of a patch.

    array:    where it stands, with places for the names of the image's arrays and of the averaged network
    distance: of DISTANCES
    unit:     whether each patch is normalised over its channels first
    """

    array: str
    distance: str
    unit: bool = False


DISTANCES = {"l1": jnp.abs, "l2": jnp.square}
TARGETS = {
    "hog": Target("{image}/hog", "l2"),  # MaskFeat
    "pixel": Target("{image}/pixel", "l1"),  # SimMIM
    "pixel_norm": Target("{image}/pixel_norm", "l2"),  # MAE
    # What the moving average makes of the whole image (MAMO).  Its scale must not shrink: data2vec's normalisation.
    "ema": Target("{average}/{image}/tokens", "l1", unit=True),
}


def predict_patches(network: str, *, of: str, target: Target, array: str, makes: str) -> Pass:
    """'<makes>/prediction' and '<makes>/target' (B, N, K), and '<makes>/error' (B, N), their mean distance per channel.

    of:    representations of all patches, (B, N, D), from which the network predicts
    array: the target's, (B, N, K).  No gradient flows through the target
    """

    def run(params, arrays, key, train):
        wanted = jax.lax.stop_gradient(arrays[array].astype(jnp.float32))
        if target.unit:
            wanted = standardised(wanted)
        found = through_layers(params[network], arrays[of])
        error = DISTANCES[target.distance](found - wanted).mean(axis=2)
        return {f"{makes}/prediction": found, f"{makes}/target": wanted, f"{makes}/error": error}

    provides = tuple(f"{makes}/{name}" for name in ("prediction", "target", "error"))
    return Pass(network, (network,), (of, array), provides, run)
