"""Two views of each image through one encoder and a projector: self-supervised training of a teacher."""

import flax.linen as nn
import jax.numpy as jnp

from smke_jax.passes.base import MEAN, STD, Pass, to_network

VIEWS = ("view1", "view2")


def two_views(model: nn.Module, network: str, *, mean=MEAN, std=STD) -> Pass:
    """'view{1,2}/{cls,projection,pixels}' of the arrays 'view1' and 'view2'.

    `model` gives ([CLS] (B, D), projection (B, P)); `mean` and `std` (3,) normalise pixels in [0, 1].
    """

    def run(params, arrays, key, train):
        # One forward over both views keeps the matrices large; interleaving them keeps every example on its device.
        both = jnp.stack([arrays[name] for name in VIEWS], axis=1)  # (B, 2, S, S, 3)
        pixels = to_network(both.reshape(-1, *both.shape[2:]), mean, std)
        rngs = {"dropout": key} if train else None
        cls, projection = model.apply({"params": params[network]}, pixels, train=train, rngs=rngs)
        made = {}
        for i, name in enumerate(VIEWS):
            rows = slice(i, None, len(VIEWS))
            made |= {f"{name}/cls": cls[rows], f"{name}/projection": projection[rows], f"{name}/pixels": pixels[rows]}
        return made

    provides = tuple(f"{view}/{what}" for view in VIEWS for what in ("cls", "projection", "pixels"))
    return Pass(network, (network,), VIEWS, provides, run, watched=("view1/cls",))


def one_view(model: nn.Module, network: str, *, mean=MEAN, std=STD) -> Pass:
    """'encoder/cls' (B, D) of the array 'image': what the encoder is evaluated by."""

    def run(params, arrays, key, train):
        pixels = to_network(arrays["image"], mean, std)
        return {"encoder/cls": model.apply({"params": params[network]}, pixels)[0]}

    return Pass(f"{network}/image", (network,), ("image",), ("encoder/cls",), run)
