"""The teacher's [CLS] through a codebook: with a decoder while the codes are learned, and frozen as a target."""

import jax
import jax.numpy as jnp

from smke_jax.models.quantizer import Autoencoder, Quantizer
from smke_jax.passes.base import Pass

TERM = "slots/image_vq"  # the term whose slots are the codes, which follow the latents


def autoencode(model: Autoencoder, network: str, num_codes: int) -> Pass:
    """'code/{latent,similarity,reconstruction}', see Autoencoder, of 'target/cls' and 'target/patches'."""
    names = ("code/latent", "code/similarity", "code/reconstruction")

    def run(params, arrays, key, train):
        inputs = arrays["target/cls"], arrays["target/patches"], params[TERM]["codes"]
        return dict(zip(names, model.apply({"params": params[network]}, *inputs, rngs={"mask": key}), strict=True))

    codes = {TERM: {"codes": jax.ShapeDtypeStruct((num_codes, model.code_dim), jnp.float32)}}
    return Pass(network, (network,), ("target/cls", "target/patches"), names, run, reads=codes)


def quantize(model: Quantizer, network: str) -> Pass:
    """'target/code' (B,) int32, the number of the code of 'target/cls'."""

    def run(params, arrays, key, train):
        return {"target/code": model.apply({"params": params[network]}, arrays["target/cls"])}

    return Pass(network, (network,), ("target/cls",), ("target/code",), run)
