"""The teacher's [CLS] through a codebook: with a decoder while it is learned, and frozen as a target."""

import jax.numpy as jnp

from smke_jax.models.quantizer import Autoencoder, Quantizer
from smke_jax.passes.base import Pass


def autoencoder_pass(model: Autoencoder, num_codes: int) -> Pass:
    """'code/{latent,similarity,reconstruction}', see Autoencoder, of 'target/cls' and 'target/patches'.

    The codes are slots of the term 'image_vq', which has them follow the latents.
    """

    def inputs(params, batch):
        return batch["target/cls"], batch["target/patches"], params["image_vq"]["codes"]

    def init(key, batch):
        slots = {"image_vq": {"codes": jnp.zeros((num_codes, model.code_dim))}}
        return model.init({"params": key, "mask": key}, *inputs(slots, batch))["params"] | slots

    def run(params, batch, key, train):
        out = model.apply({"params": params}, *inputs(params, batch), rngs={"mask": key})
        return dict(zip(names, out, strict=True))

    names = ("code/latent", "code/similarity", "code/reconstruction")
    return Pass("autoencoder", names, True, init, run, needs=("target/cls", "target/patches"), reads=("image_vq",))


def quantizer_pass(model: Quantizer) -> Pass:
    """'target/code' (B,) int32, the number of the code of 'target/cls'."""

    def init(key, batch):
        return model.init(key, batch["target/cls"])["params"]

    def run(params, batch, key, train):
        return {"target/code": model.apply({"params": params}, batch["target/cls"])}

    return Pass("quantizer", ("target/code",), False, init, run, needs=("target/cls",))
